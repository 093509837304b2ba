"""Standard error as the place of log lines, without ever waiting for whoever reads it.

A pipe that nobody empties must not stop a supervisor that has a worker to replace, nor a worker's
hub. So lines go through a descriptor of our own that does not block; one that finds no room in a
tenth of a second is dropped, the following ones at once, and how many were dropped is told when
there is room again. Not here: what a line looks like (``log.py``). Next on the path:
``supervisor/run.py``.
"""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import Callable
from typing import Any

import gevent.monkey

from pyproxy.limits import LOG_WAIT_MS

_poll: Callable[[], Any] = gevent.monkey.get_original("select", "poll")
_new_socket: Any = gevent.monkey.get_original("socket", "socket")


class LogSink(logging.Handler):
    """Writes formatted records to a descriptor; drops and counts what finds no room."""

    def __init__(self, descriptor: int) -> None:
        """Write where ``descriptor`` leads, which stays as it is for others who hold it."""
        super().__init__()
        self._write, self._fd, self._close = _writer(descriptor)
        self._dropped = 0
        self._torn = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; never waits longer than ``LOG_WAIT_MS``, and once an episode only."""
        self.put(self.format(record))
        if self._dropped and self._told(record):
            self._dropped = 0

    def close(self) -> None:
        """Write no more."""
        super().close()
        self._close()

    def put(self, line: str) -> bool:
        """Write one line, or count it as dropped; tell which."""
        data = f"{line}\n".encode(errors="replace")
        if self._torn:
            data = b"\n" + data
        if self._write_all(data):
            self._torn = False
            return True
        self._dropped += 1
        return False

    def _told(self, record: logging.LogRecord) -> bool:
        """Tell how many lines were dropped, if there is room again."""
        told = logging.makeLogRecord({**record.__dict__, "msg": "log_lines_dropped", "args": ()})
        told.levelno, told.levelname, told.exc_info = logging.WARNING, "WARNING", None
        told.fields = {"lines": self._dropped}
        data = f"{self.format(told)}\n".encode()
        return self._write_all(b"\n" + data if self._torn else data)

    def _write_all(self, data: bytes) -> bool:
        left = memoryview(data)
        while left:
            try:
                left = left[self._write(left) :]
            except BlockingIOError:
                if self._dropped or not self._room_comes():
                    self._torn |= len(left) < len(data)
                    return False
            except OSError:
                return False  # nobody reads any more, or the disk is full
        return True

    def _room_comes(self) -> bool:
        poll = _poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(LOG_WAIT_MS))


_Writer = tuple[Callable[[memoryview], int], int, Callable[[], None]]


def _writer(descriptor: int) -> _Writer:
    """Return how to write there without blocking, where to ask for room, and how to close that.

    What others share (a shell's terminal) keeps its own flags: a pipe or a file is opened anew, a
    socket is told with each call.
    """
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        own = os.open(f"/proc/self/fd/{descriptor}", flags)
    except OSError:
        pass
    else:
        return (lambda data: os.write(own, data)), own, lambda: os.close(own)
    try:
        copy = _new_socket(fileno=os.dup(descriptor))
    except OSError:
        return (lambda data: os.write(descriptor, data)), descriptor, lambda: None
    return (lambda data: int(copy.send(data, socket.MSG_DONTWAIT))), copy.fileno(), copy.close
