"""Binds the listeners: those of the start before any fork, those of a reload before it is told.

Every worker shares the same accept queues, and a listener that a reload keeps stays the same
socket. Not here: accepting (the engine does). Next on the path: ``epochs.py``.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyproxy import exitcodes
from pyproxy.config.listen import ListenAddress
from pyproxy.errors import OperatorError
from pyproxy.limits import LISTEN_BACKLOG, SOCKET_PROBE_S
from pyproxy.log import log_event
from pyproxy.plainsocket import new_socket

UNIX_MODE = 0o777
"""Mode of a Unix socket, as PostgreSQL's and PgBouncer's: the login decides who gets in."""

_log = logging.getLogger("pyproxy.supervisor")


@dataclass(frozen=True)
class Bound:
    """A bound socket; ``number`` names it to the engines for as long as it lives."""

    number: int
    address: ListenAddress
    socket: Any
    identity: tuple[int, int] | None


class Listeners:
    """The bound sockets of one service; they live as long as the supervisor takes clients."""

    def __init__(self) -> None:
        """Start without any."""
        self._bound: dict[ListenAddress, Bound] = {}
        self._next = 1

    def bind(self, addresses: Iterable[ListenAddress]) -> list[ListenAddress]:
        """Bind the addresses that are not bound yet and return them; all of them or none.

        Raises ``OperatorError``: exit code 78 for an address that cannot work on this machine, 69
        for one that is taken or needs a privilege. Nothing has changed then.
        """
        wanted = list(addresses)
        new: list[ListenAddress] = []
        for address in wanted:
            if address in self._bound:
                continue
            try:
                self._check_own(address, wanted)
                bound, identity = _bind_unix(address) if address.unix else _bind_tcp(address)
            except (OSError, OperatorError) as error:
                self.close_some(new)
                if isinstance(error, OSError):
                    raise _explain(address, error) from error
                raise
            self._bound[address] = Bound(self._next, address, bound, identity)
            self._next += 1
            new.append(address)
        return new

    def retire(self, keep: Iterable[ListenAddress]) -> list[ListenAddress]:
        """Close all but ``keep`` and return what was closed."""
        kept = set(keep)
        gone = [address for address in self._bound if address not in kept]
        self.close_some(gone)
        return gone

    def offered(self, addresses: Iterable[ListenAddress]) -> list[tuple[int, int, bool]]:
        """Return (listener id, descriptor, whether it is a Unix socket) of those that are bound."""
        found = [self._bound[address] for address in addresses if address in self._bound]
        return [(each.number, each.socket.fileno(), bool(each.address.unix)) for each in found]

    def unix_paths(self) -> list[str]:
        """Return the files of the Unix sockets."""
        return [address.unix for address in self._bound if address.unix]

    def close(self) -> None:
        """Close this process's copies, and remove the socket files that are still ours."""
        self.close_some(list(self._bound))

    def close_in_child(self) -> None:
        """Close a forked child's copies; the files stay."""
        for bound in self._bound.values():
            bound.socket.close()

    def _check_own(self, address: ListenAddress, wanted: list[ListenAddress]) -> None:
        """Refuse an address that one of ours, which shall go, still holds."""
        for own in self._bound:
            if own not in wanted and own.overlaps(address):
                text = (
                    f"cannot listen on {address}: {own} is in the way until it is closed; take it"
                )
                text += " out in one reload and add the new one in the next, or restart"
                raise OperatorError(text, exitcodes.CONFIG)

    def close_some(self, addresses: list[ListenAddress]) -> None:
        """Close some of them, as ``close`` does."""
        for address in addresses:
            bound = self._bound.pop(address)
            bound.socket.close()
            if bound.identity is not None and bound.identity == _identity(address.unix):
                try:
                    os.unlink(address.unix)
                except OSError as error:  # given up rights may not reach the directory
                    fields = {"file": address.unix, "reason": error.strerror}
                    log_event(_log, logging.WARNING, "socket_file_left", **fields)


def _bind_tcp(address: ListenAddress) -> tuple[Any, None]:
    family = socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET
    bound = new_socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((str(address.ip), address.port))
        bound.listen(LISTEN_BACKLOG)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound, None


def _bind_unix(address: ListenAddress) -> tuple[Any, tuple[int, int] | None]:
    _remove_stale(address)
    bound = new_socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(address.unix)
        os.chmod(address.unix, UNIX_MODE)
        bound.listen(LISTEN_BACKLOG)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound, _identity(address.unix)


def _remove_stale(address: ListenAddress) -> None:
    """Remove a socket file that a dead process left; never one that somebody answers on."""
    try:
        found = os.stat(address.unix)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        text = f"cannot listen on {address}: a file that is not a socket is in the way; remove it"
        raise OperatorError(text, exitcodes.CONFIG)
    probe = new_socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(SOCKET_PROBE_S)
        probe.connect(address.unix)
    except ConnectionRefusedError:
        os.unlink(address.unix)
        return
    except OSError:
        pass  # whoever is there is busy or shy, but there
    finally:
        probe.close()
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _explain(address: ListenAddress, error: OSError) -> OperatorError:
    what = f"cannot listen on {address}"
    if error.errno == errno.EADDRINUSE:
        text = f"{what}: another process listens there; stop it or choose another address"
        return OperatorError(text, exitcodes.UNAVAILABLE)
    if error.errno in (errno.EACCES, errno.EPERM):
        text = f"{what}: this user may not; take a port from 1024 on, a directory that it may write"
        return OperatorError(text + ", or grant CAP_NET_BIND_SERVICE", exitcodes.UNAVAILABLE)
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        text = f"{what}: this machine does not have that address; `ip addr` lists what it has"
        return OperatorError(text, exitcodes.CONFIG)
    return OperatorError(f"{what}: {error.strerror or error}", exitcodes.CONFIG)
