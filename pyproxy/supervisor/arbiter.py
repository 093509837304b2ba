"""The arbiter: starts the worker, watches it, starts it again, and ends it when told to.

One thread, one ``poll`` over pidfds and the signal pipe; no gevent hub, so that forking stays safe.
Not here: what a worker does (``../worker/main.py``). Next on the path: ``../worker/main.py``.

::

    STARTING --fork--> RUNNING --TERM/INT/QUIT--> STOPPING --worker gone--> exit 0
        ^                 | worker gone
        +---- back-off <--+------ exit 78, or five crashes in 30 s --> exit 78 / 69
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import gevent.monkey

from pyproxy import exitcodes
from pyproxy.limits import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    CRASH_WINDOW_S,
    CRASHES_MAX,
    INTERRUPT_DRAIN_S,
    KILL_AFTER_S,
)
from pyproxy.log import log_event
from pyproxy.supervisor.signals import HANDLED, LATER, SignalQueue

_log = logging.getLogger("pyproxy.supervisor")
_fork: Callable[[], int] = gevent.monkey.get_original("os", "fork")
_poll: Callable[[], Any] = gevent.monkey.get_original("select", "poll")

WorkerMain = Callable[[int], int]
"""Runs in the child with the worker's generation (from 1) and returns its exit code."""


@dataclass
class Child:
    """A running worker: its process and how to watch it."""

    pid: int
    pidfd: int
    generation: int
    started: float


class Arbiter:
    """Keeps one worker running until told to stop."""

    def __init__(
        self,
        worker_main: WorkerMain,
        *,
        shutdown_timeout_ms: int,
        on_stop: Callable[[], None] = lambda: None,
        on_fork: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; nothing starts before ``run``.

        ``shutdown_timeout_ms`` bounds the worker's own drain; ``on_stop`` is called once when
        stopping begins (it closes the listeners), ``on_fork`` in each child before ``worker_main``.
        """
        self._worker_main = worker_main
        self._shutdown_timeout_s = shutdown_timeout_ms / 1000
        self._on_stop = on_stop
        self._on_fork = on_fork
        self._child: Child | None = None
        self._generation = 0
        self._crashes: deque[float] = deque(maxlen=CRASHES_MAX)
        self._backoff_s = BACKOFF_FIRST_S
        self._start_at = 0.0
        self._stopping = False
        self._kill_at = float("inf")
        self._exit_code: int | None = None

    def run(self) -> int:
        """Serve until a signal or a hopeless worker ends it; return the exit code."""
        self._signals = SignalQueue()
        try:
            while self._exit_code is None:
                self._turn()
            return self._exit_code
        finally:
            self._signals.restore()

    def _turn(self) -> None:
        """Do what is due, then wait for a signal, the worker's end or the next deadline."""
        now = time.monotonic()
        if self._child is None and not self._stopping and now >= self._start_at:
            self._child = self._start()
        if self._child is not None and now >= self._kill_at:
            log_event(_log, logging.ERROR, "worker_killed", worker=self._child.pid)
            self._send(signal.SIGKILL)
            self._kill_at = float("inf")
        self._wait(now)
        for number in self._signals.take():
            self._on_signal(number)
        if self._child is not None:
            self._reap(self._child)
        if self._child is None and self._stopping and self._exit_code is None:
            self._exit_code = exitcodes.OK

    def _wait(self, now: float) -> None:
        poll = _poll()
        poll.register(self._signals.descriptor, select.POLLIN)
        deadline = self._kill_at
        if self._child is not None:
            poll.register(self._child.pidfd, select.POLLIN)
        elif not self._stopping:
            deadline = self._start_at
        elif self._stopping:
            deadline = now
        wait_ms = None if deadline == float("inf") else max(0.0, deadline - now) * 1000
        poll.poll(wait_ms)

    def _start(self) -> Child:
        threads = sum(1 for _ in Path("/proc/self/task").iterdir())
        if threads != 1:
            raise RuntimeError(f"the supervisor has {threads} threads; a fork would lose others")
        self._generation += 1
        gc.collect()
        gc.freeze()  # the collector would write to, and so copy, every page that the child shares
        # Until the child has handlers of its own, a signal must wait rather than end it half-made.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            pid = _fork()
            if pid == 0:
                self._be_worker()
            pidfd = os.pidfd_open(pid)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        log_event(_log, logging.INFO, "worker_started", worker=pid, generation=self._generation)
        return Child(pid, pidfd, self._generation, time.monotonic())

    def _be_worker(self) -> NoReturn:
        """Become the worker; never returns into the supervisor's stack."""
        code = exitcodes.WORKER_FAILED
        try:
            self._signals.restore()
            # A Ctrl-C at the terminal is for the supervisor, which passes it on, once.
            os.setpgid(0, 0)
            self._on_fork()
            code = self._worker_main(self._generation)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self, child: Child) -> None:
        result = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG)
        if result is None:
            return
        os.close(child.pidfd)
        self._child = None
        killed = result.si_code != os.CLD_EXITED
        code = None if killed else result.si_status
        name = signal.Signals(result.si_status).name if killed else None
        lived_s = time.monotonic() - child.started
        fine = self._stopping and code == exitcodes.OK
        level = logging.INFO if fine else logging.ERROR
        log_event(_log, level, "worker_ended", worker=child.pid, code=code, signal=name)
        if self._stopping:
            return
        if code == exitcodes.CONFIG:
            log_event(_log, logging.ERROR, "service_stopped", reason="the worker exited with 78")
            self._give_up(exitcodes.CONFIG)
            return
        self._schedule_restart(lived_s)

    def _schedule_restart(self, lived_s: float) -> None:
        now = time.monotonic()
        self._crashes.append(now)
        if len(self._crashes) == CRASHES_MAX and now - self._crashes[0] <= CRASH_WINDOW_S:
            reason = f"{CRASHES_MAX} crashes in {CRASH_WINDOW_S:.0f} s; the lines above say why"
            log_event(_log, logging.ERROR, "service_stopped", reason=reason)
            self._give_up(exitcodes.UNAVAILABLE)
            return
        if lived_s > CRASH_WINDOW_S:
            self._backoff_s = BACKOFF_FIRST_S
        self._start_at = now + self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, BACKOFF_MAX_S)

    def _give_up(self, code: int) -> None:
        self._exit_code = code
        self._on_stop()

    def _on_signal(self, number: signal.Signals) -> None:
        """TERM and INT drain; a second one, or QUIT, stops at once."""
        if number in LATER:
            log_event(_log, logging.WARNING, "signal_without_effect", signal=number.name)
            return
        at_once = self._stopping or number == signal.SIGQUIT
        log_event(_log, logging.INFO, "signal", signal=number.name, at_once=at_once)
        drain_s = 0.0 if at_once else self._shutdown_timeout_s
        if number == signal.SIGINT:
            drain_s = min(drain_s, INTERRUPT_DRAIN_S)
        if not self._stopping:
            self._stopping = True
            self._on_stop()
        self._kill_at = min(self._kill_at, time.monotonic() + drain_s + KILL_AFTER_S)
        self._send(signal.SIGQUIT if at_once else number)

    def _send(self, number: signal.Signals) -> None:
        if self._child is not None:
            signal.pidfd_send_signal(self._child.pidfd, number)
