"""Carries the engine's events into the hub: log lines, and the one question that the engine asks.

The engine writes its eventfd when its ring was empty; one read then drains many events. Not here:
any byte of a client. Next on the path: ``keys.py``.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any, Protocol

import gevent

from pyproxy.config.compile import Compiled
from pyproxy.limits import EVENTS_A_TURN
from pyproxy.log import LEVELS, log_event
from pyproxy.worker.keys import salted_password

_log = logging.getLogger("pyproxy.worker")
_READ = 1  # libev's EV_READ
_EVENT_LEVELS = {
    "login_failed": logging.WARNING,
    "pinned": logging.INFO,
    "unpinned": logging.DEBUG,
    "server_failed": logging.WARNING,
    "protocol_violation": logging.WARNING,
    "budget_changed": logging.INFO,
}


class Engine(Protocol):
    """What the worker uses of ``pyproxy._core.Engine``."""

    @property
    def event_fd(self) -> int:
        """The eventfd that the engine writes when there are events."""
        ...

    def drain(self, most: int, /) -> list[tuple[str, dict[str, Any]]]:
        """Take events: (kind, fields)."""
        ...

    def set_server_keys(
        self, credential: int, salt: bytes, iterations: int, salted_password: bytes, /
    ) -> None:
        """Answer ``server_keys_needed``."""
        ...


class Bridge:
    """One engine's events in one hub."""

    def __init__(self, engine: Engine, compiled: Compiled, on_wake: Callable[[], None]) -> None:
        """Begin to watch; ``on_wake`` is called after each batch (the engine may have ended)."""
        self._engine = engine
        self._compiled = compiled
        self._on_wake = on_wake
        self._deriving: set[tuple[int, bytes, int]] = set()
        self._watcher = gevent.get_hub().loop.io(engine.event_fd, _READ)
        self._watcher.start(self._on_ready)

    def close(self) -> None:
        """Take what is left, then stop watching."""
        self.drain()
        self._watcher.stop()
        self._watcher.close()

    def drain(self) -> None:
        """Take and handle one batch of events; rings the bell again if there may be more."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._engine.event_fd, 8)
        events = self._engine.drain(EVENTS_A_TURN)
        for kind, fields in events:
            self._handle(kind, fields)
        if len(events) == EVENTS_A_TURN:
            os.eventfd_write(self._engine.event_fd, 1)

    def _on_ready(self) -> None:
        try:
            self.drain()
        except Exception:
            _log.exception("event_lost")
        self._on_wake()

    def _handle(self, kind: str, fields: dict[str, Any]) -> None:
        if kind == "server_keys_needed":
            wanted = (fields["credential"], bytes(fields["salt"]), fields["iterations"])
            if wanted not in self._deriving:
                self._deriving.add(wanted)
                gevent.spawn(self._derive, *wanted)
        elif kind == "log":
            log_event(_log, LEVELS[fields["level"]], "engine", text=fields["text"])
        else:
            log_event(_log, _EVENT_LEVELS.get(kind, logging.INFO), kind, **fields)

    def _derive(self, credential: int, salt: bytes, iterations: int) -> None:
        """Derive one login's keys on a thread and hand them to the engine."""
        try:
            password = self._compiled.server_password(credential)
            if password is None:
                log_event(_log, logging.ERROR, "server_password_missing", credential=credential)
                return
            pool = gevent.get_hub().threadpool
            keys = pool.apply(salted_password, (password, salt, iterations))
            self._engine.set_server_keys(credential, salt, iterations, keys)
        finally:
            self._deriving.discard((credential, salt, iterations))
