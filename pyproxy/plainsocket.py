"""Sockets and descriptors that never touch gevent's hub: the supervisor must stay without one.

gevent replaces the classes inside the module ``socket``, so the original functions there would
still return its sockets. Not here: what travels on them. Next on the path: ``supervisor/boxes.py``.
"""

from __future__ import annotations

import _socket
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import gevent.monkey

new_socket: Any = gevent.monkey.get_original("socket", "socket")
"""The original class ``socket.socket``."""

close_now: Callable[[int], None] = gevent.monkey.get_original("os", "close")
"""The original ``os.close``: gevent's waits for the hub, and then the other end waits, too."""

_INT = struct.calcsize("i")
_REFUSED = (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


def socket_pair(kind: int) -> tuple[Any, Any]:
    """Make a connected pair of non-blocking Unix sockets of a kind (``SOCK_SEQPACKET``, …)."""
    first, second = _socket.socketpair(socket.AF_UNIX, kind)
    pair = [new_socket(fileno=each.detach()) for each in (first, second)]
    for each in pair:
        each.setblocking(False)
    return pair[0], pair[1]


def accept(listener: Any) -> Any:
    """Take one connection, non-blocking; raises ``OSError`` as the system call does."""
    descriptor, _address = listener._accept()  # noqa: SLF001 - accept() would make gevent's class
    accepted = new_socket(fileno=descriptor)
    accepted.setblocking(False)
    return accepted


def peer_uid(connection: Any) -> int:
    """Return the user id of the process at the other end of a Unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid


def may_command(connection: Any) -> bool:
    """Return whether the peer is root or this service's own user."""
    return peer_uid(connection) in (0, os.geteuid())


def send_with_descriptors(to: Any, data: bytes, descriptors: list[int]) -> bool:
    """Send one datagram with descriptors; False if the other end's queue is full or gone."""
    rights = struct.pack(f"{len(descriptors)}i", *descriptors)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
    try:
        to.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except (BlockingIOError, BrokenPipeError, ConnectionError):
        return False
    except OSError as error:
        # Too many descriptors are on their way already (ETOOMANYREFS), or no memory for another.
        if error.errno in _REFUSED:
            return False
        raise
    return True


def receive_descriptors(
    source: Any, bytes_max: int, descriptors_max: int
) -> tuple[bytes, list[int]] | None:
    """Take one datagram with its descriptors; None if nothing waits. An empty one means the end."""
    try:
        data, ancillary, _flags, _address = source.recvmsg(
            bytes_max,
            socket.CMSG_SPACE(descriptors_max * _INT),
            socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
        )
    except BlockingIOError:
        return None
    found: list[int] = []
    for level, kind, raw in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = len(raw) - len(raw) % _INT
            found += struct.unpack(f"{whole // _INT}i", raw[:whole])
    return data, found
