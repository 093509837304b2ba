"""What systemd is told (sd_notify): ready, reloading, stopping, alive. Silent without systemd.

Not here: when each is true (``arbiter.py``). Protocol: sd_notify(3), one datagram of lines. Next on
the path: ``arbiter.py``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Any

from pyproxy.plainsocket import new_socket


class Notify:
    """The connection to systemd, if there is one."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Read ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC``, and take them out for the children."""
        path = environment.pop("NOTIFY_SOCKET", "")
        watchdog_us = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        self._was_ready = False
        self._socket: Any = None
        self.watchdog_s: float | None = None
        if not path.startswith(("/", "@")):
            return
        self._socket = new_socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._address = "\0" + path[1:] if path.startswith("@") else path
        if watchdog_us.isdigit() and int(watchdog_us) and pid in ("", str(os.getpid())):
            self.watchdog_s = int(watchdog_us) / 2_000_000  # twice as often as it must be

    def send(self, *lines: str) -> None:
        """Send lines such as ``READY=1``; a systemd that does not listen misses them."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)

    def reloading(self) -> None:
        """Say that a reload has begun (``reloaded`` ends it)."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def ready(self, status: str) -> None:
        """Say that the service serves; ``status`` is one line for people."""
        self._was_ready = True
        self.send("READY=1", f"STATUS={status}")

    def reloaded(self, status: str) -> None:
        """Say that a reload has ended; before the first ``ready`` that stays to be said."""
        if self._was_ready:
            self.ready(status)

    def stopping(self) -> None:
        """Say that the service ends."""
        self.send("STOPPING=1", "STATUS=draining")

    def close_in_child(self) -> None:
        """Close a forked child's copy."""
        if self._socket is not None:
            self._socket.close()
