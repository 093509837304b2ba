"""The worker's main thread: makes the engine after the fork, answers it, and ends it when told to.

Not here: the sockets of clients and servers; they belong to the engine's thread. Next on the path:
``bridge.py``.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence

import gevent
from gevent.event import Event

from pyproxy import _core, exitcodes
from pyproxy.config.compile import Compiled
from pyproxy.config.model import Supervisor
from pyproxy.limits import INTERRUPT_DRAIN_S, WATCH_S
from pyproxy.log import log_event
from pyproxy.worker.bridge import Bridge
from pyproxy.worker.targets import probe_all, resolve_all

_WORKER = 0  # this worker's number; there is one so far
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_log = logging.getLogger("pyproxy.worker")


def run_worker(
    compiled: Compiled,
    listeners: Sequence[tuple[int, bool]],
    limits: Supervisor,
    generation: int,
) -> int:
    """Serve until told to stop; return the exit code.

    Runs in a fresh child with SIGTERM, SIGINT and SIGQUIT blocked. ``listeners`` are inherited
    descriptors, ``generation`` counts from 1. Returns 0 after a stop that was asked for, 70 if the
    engine ended by itself, 78 if the engine does not take the configuration.
    """
    return _Worker(compiled, listeners, limits, generation).run()


class _Worker:
    """One worker's life: START -> SERVING -> (STOPPING) -> the engine has ended -> exit code."""

    def __init__(
        self,
        compiled: Compiled,
        listeners: Sequence[tuple[int, bool]],
        limits: Supervisor,
        generation: int,
    ) -> None:
        self.compiled = compiled
        self.listeners = list(listeners)
        self.limits = limits
        self.generation = generation
        self.parent = os.getppid()
        self.engine: _core.Engine | None = None
        self.ended = Event()
        self.exit_code = exitcodes.OK
        self.stopping = False

    def run(self) -> int:
        for number in _SIGNALS:
            gevent.signal_handler(number, self.on_signal, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        gevent.spawn(self.start)
        gevent.spawn(self.watch)
        self.ended.wait()
        return self.exit_code

    def start(self) -> None:
        """Resolve the targets, then make and start the engine."""
        addresses = resolve_all(self.compiled.targets)
        if self.stopping:
            return
        config = self.compiled.for_worker(_WORKER, self.generation, addresses)
        try:
            self.engine = _core.Engine(config, self.listeners)
            self.bridge = Bridge(self.engine, self.compiled, self.look)
            self.engine.start()
        except ValueError as error:
            log_event(_log, logging.ERROR, "configuration_refused", reason=error)
            self.end(exitcodes.CONFIG)
        except Exception:
            _log.exception("engine_not_started")
            self.end(exitcodes.WORKER_FAILED)
        else:
            log_event(_log, logging.INFO, "serving", proxy=self.compiled.name)
            gevent.spawn(probe_all, self.compiled.targets)

    def on_signal(self, number: signal.Signals) -> None:
        """TERM and INT drain; QUIT, or a second one, ends the clients at once."""
        if self.engine is None:
            self.stopping = True
            self.end(exitcodes.OK)
        elif self.stopping or number == signal.SIGQUIT:
            self.stopping = True
            self.engine.stop_now()
        else:
            drain_s = self.limits.shutdown_timeout / 1000
            self.drain(min(drain_s, INTERRUPT_DRAIN_S) if number == signal.SIGINT else drain_s)

    def drain(self, drain_s: float) -> None:
        """Let each client end at its next idle point; after ``drain_s`` seconds end the rest."""
        if self.engine is None:
            self.end(exitcodes.OK)
            return
        self.stopping = True
        self.engine.stop()
        gevent.spawn_later(drain_s, self.engine.stop_now)

    def watch(self) -> None:
        """Look after what gives no event: an engine that is gone, a supervisor that is gone."""
        orphan_since: float | None = None
        while True:
            gevent.sleep(WATCH_S)
            self.look()
            if os.getppid() == self.parent or self.stopping:
                continue
            if orphan_since is None:
                orphan_since = time.monotonic()
                drain_in_ms = self.limits.orphan_timeout
                log_event(_log, logging.ERROR, "supervisor_gone", drain_in_ms=drain_in_ms)
            elif time.monotonic() - orphan_since >= self.limits.orphan_timeout / 1000:
                self.drain(self.limits.shutdown_timeout / 1000)

    def look(self) -> None:
        """End the worker if its engine has ended."""
        if self.ended.is_set() or self.engine is None or not self.engine.finished():
            return
        self.bridge.close()
        if not self.stopping:
            log_event(_log, logging.ERROR, "engine_ended")
        self.end(exitcodes.OK if self.stopping else exitcodes.WORKER_FAILED)

    def end(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self.ended.set()
