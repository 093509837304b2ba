"""The worker's main thread: makes the engine after the fork, answers it, and ends it when told to.

What happens when something dies: the engine's thread panics: the whole process ends, and the
supervisor starts the next one. This thread hangs: the engine serves on, nothing is logged. The
supervisor dies: the life pipe ends, the worker serves on for ``orphan_timeout`` and then drains.
Not here: the sockets of clients and servers; they belong to the engine's thread. Next on the path:
``bridge.py``.
"""

from __future__ import annotations

import logging
import signal
from dataclasses import dataclass

import gevent
from gevent.event import Event

from pyproxy import _core, exitcodes
from pyproxy.errors import OperatorError
from pyproxy.lifepipe import LifeWatch
from pyproxy.limits import WATCH_S
from pyproxy.log import log_event
from pyproxy.plainsocket import close_now
from pyproxy.worker.bridge import Bridge
from pyproxy.worker.io import choose_io

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_log = logging.getLogger("pyproxy.worker")


@dataclass(frozen=True)
class WorkerKit:
    """What the supervisor gives a worker; descriptors are inherited, times are in seconds.

    ``io`` is the setting, ``worker`` is its number (0–63), ``incarnation`` counts all starts of
    workers from 1, ``epoch`` is that of the settings in ``settings_fd``, ``listeners`` are
    (listener id, descriptor, whether it is a Unix socket).
    """

    name: str
    io: str
    page: _core.Page
    worker: int
    incarnation: int
    epoch: int
    settings_fd: int
    listeners: list[tuple[int, int, bool]]
    inbox: int
    outboxes: list[int]
    life_fd: int
    last_words_fd: int
    orphan_s: float
    shutdown_s: float


def run_worker(kit: WorkerKit) -> int:
    """Serve until told to stop; return the exit code.

    Runs in a fresh child with the service's signals blocked. Returns 0 after a stop that was asked
    for, 70 if the engine ended by itself, 78 if the engine does not take the settings.
    """
    return _Worker(kit).run()


class _Worker:
    """One worker's life: START -> SERVING -> (STOPPING) -> the engine has ended -> exit code."""

    def __init__(self, kit: WorkerKit) -> None:
        self.kit = kit
        self.engine: _core.Engine | None = None
        self.ended = Event()
        self.exit_code = exitcodes.OK
        self.stopping = False
        self.orphaned = False

    def run(self) -> int:
        _core.set_panic_file(self.kit.last_words_fd)
        self.start()
        for number in _SIGNALS:
            gevent.signal_handler(number, self.on_signal, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        LifeWatch(self.kit.life_fd, self.on_orphaned)
        gevent.spawn(self.watch)
        self.ended.wait()
        return self.exit_code

    def start(self) -> None:
        """Make and start the engine, and give it all it inherited."""
        kit = self.kit
        try:
            io, _ = choose_io(kit.io)
            engine = _core.Engine(
                kit.page,
                kit.worker,
                kit.incarnation,
                io,
                kit.epoch,
                kit.settings_fd,
                kit.listeners,
                kit.inbox,
                kit.outboxes,
            )
            self.bridge = Bridge(engine, self.look)
            engine.start()
        except ValueError as error:
            log_event(_log, logging.ERROR, "configuration_refused", reason=error)
            self.end(exitcodes.CONFIG)
        except OperatorError as error:  # io_uring was forbidden since the service started
            log_event(_log, logging.ERROR, "engine_not_started", reason=error)
            self.end(exitcodes.WORKER_FAILED)
        except Exception:
            _log.exception("engine_not_started")
            self.end(exitcodes.WORKER_FAILED)
        else:
            self.engine = engine
            fields = {"worker": kit.worker, "epoch": kit.epoch}
            log_event(_log, logging.INFO, "serving", proxy=kit.name, **fields, io=io)
        # The engine has copies of its own; a listener that it closes must not stay open here.
        for descriptor in (kit.settings_fd, kit.inbox, *kit.outboxes):
            close_now(descriptor)
        for _number, descriptor, _unix in kit.listeners:
            close_now(descriptor)

    def on_signal(self, number: signal.Signals) -> None:
        """Drain on TERM and INT, for as long as the supervisor lets it; end at once on QUIT."""
        if self.engine is None:
            self.end(self.exit_code)
        elif self.stopping or number == signal.SIGQUIT:
            self.stopping = True
            self.engine.stop_now()
        else:
            self.drain()

    def drain(self) -> None:
        """Let each client end at its next idle point."""
        if self.engine is None:
            return
        self.stopping = True
        self.engine.stop()
        if self.orphaned:  # nobody else ends what does not end by itself
            gevent.spawn_later(self.kit.shutdown_s, self.engine.stop_now)

    def on_orphaned(self) -> None:
        """Serve on for a while without the supervisor, then drain."""
        self.orphaned = True
        drain_in_s = 0.0 if self.stopping else self.kit.orphan_s
        log_event(_log, logging.ERROR, "supervisor_gone", drain_in_s=drain_in_s)
        gevent.sleep(drain_in_s)
        self.drain()

    def watch(self) -> None:
        """Look whether the engine lives: a thread that is gone rings no bell."""
        while True:
            gevent.sleep(WATCH_S)
            self.look()

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
