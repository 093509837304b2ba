"""Carries the engine's events into the hub: log lines, and the one question that the engine asks.

The engine writes its eventfd when its ring was empty; one read then drains many events. Not here:
any byte of a client, any secret. Next on the path: `rust/engine`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any, Protocol

import gevent

from pyproxy.limits import EVENTS_A_TURN
from pyproxy.log import LEVELS, log_event

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

    def derive_server_keys(
        self, credential: int, epoch: int, salt: bytes, iterations: int, /
    ) -> None:
        """Answer ``server_keys_needed``; takes up to 50 ms of CPU."""
        ...


class Bridge:
    """One engine's events in one hub."""

    def __init__(self, engine: Engine, on_wake: Callable[[], None]) -> None:
        """Begin to watch; ``on_wake`` is called after each batch (the engine may have ended)."""
        self._engine = engine
        self._on_wake = on_wake
        self._deriving: set[tuple[int, int, bytes, int]] = set()
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
            place = (fields["credential"], fields["epoch"])
            wanted = (*place, bytes(fields["salt"]), fields["iterations"])
            if wanted not in self._deriving:
                self._deriving.add(wanted)
                gevent.spawn(self._derive, *wanted)
        elif kind == "log":
            log_event(_log, LEVELS[fields["level"]], "engine", text=fields["text"])
        else:
            log_event(_log, _EVENT_LEVELS.get(kind, logging.INFO), kind, **fields)

    def _derive(self, credential: int, epoch: int, salt: bytes, iterations: int) -> None:
        """Have one login's keys derived on a thread; the engine holds the password itself.

        The engine asks once a (credential, salt, iterations) and keeps the answer, so that a login
        storm costs one derivation.
        """
        wanted = (credential, epoch, salt, iterations)
        try:
            gevent.get_hub().threadpool.apply(self._engine.derive_server_keys, wanted)
        except ValueError as error:
            fields = {"credential": credential, "reason": error}
            log_event(_log, logging.ERROR, "server_keys_not_derived", **fields)
        finally:
            self._deriving.discard(wanted)
