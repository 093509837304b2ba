"""Binds the listeners, before any fork, so that every worker inherits the same accept queues.

Not here: accepting (the engine does). Uses the original socket class, because gevent's would make a
hub in the supervisor. Next on the path: ``arbiter.py``.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable
from typing import Any

import gevent.monkey

from pyproxy import exitcodes
from pyproxy.config.listen import ListenAddress
from pyproxy.errors import OperatorError
from pyproxy.limits import LISTEN_BACKLOG, SOCKET_PROBE_S

UNIX_MODE = 0o777
"""Mode of a Unix socket, as PostgreSQL's and PgBouncer's: the login decides who gets in."""

_new_socket: Any = gevent.monkey.get_original("socket", "socket")


class Listeners:
    """The bound sockets of one service; they live as long as the supervisor takes clients."""

    def __init__(self) -> None:
        """Start without any."""
        self._bound: list[tuple[ListenAddress, socket.socket, tuple[int, int] | None]] = []

    def bind(self, addresses: Iterable[ListenAddress]) -> None:
        """Bind all addresses; on the first that fails, close the others.

        Raises ``OperatorError``: exit code 78 for an address that cannot work on this machine, 69
        for one that is taken or needs a privilege.
        """
        try:
            for address in addresses:
                self._bound.append(_bind_unix(address) if address.unix else _bind_tcp(address))
        except OSError as error:
            self.close()
            raise _explain(address, error) from error
        except OperatorError:
            self.close()
            raise

    def descriptors(self) -> list[tuple[int, bool]]:
        """Return (descriptor, whether it is a Unix socket) of each listener, for the engine."""
        return [(bound.fileno(), bool(address.unix)) for address, bound, _ in self._bound]

    def close(self) -> None:
        """Close this process's copies, and remove the socket files that are still ours."""
        for address, bound, identity in self._bound:
            bound.close()
            if identity is not None and identity == _identity(address.unix):
                os.unlink(address.unix)
        self._bound.clear()


def _bind_tcp(address: ListenAddress) -> tuple[ListenAddress, socket.socket, None]:
    family = socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET
    bound = _new_socket(family, socket.SOCK_STREAM)
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
    return address, bound, None


def _bind_unix(
    address: ListenAddress,
) -> tuple[ListenAddress, socket.socket, tuple[int, int] | None]:
    _remove_stale(address)
    bound = _new_socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(address.unix)
        os.chmod(address.unix, UNIX_MODE)
        bound.listen(LISTEN_BACKLOG)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return address, bound, _identity(address.unix)


def _remove_stale(address: ListenAddress) -> None:
    """Remove a socket file that a dead process left; never one that somebody answers on."""
    try:
        found = os.stat(address.unix)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        text = f"cannot listen on {address}: a file that is not a socket is in the way; remove it"
        raise OperatorError(text, exitcodes.CONFIG)
    probe = _new_socket(socket.AF_UNIX, socket.SOCK_STREAM)
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
