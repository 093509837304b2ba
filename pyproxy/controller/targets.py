"""Turns configured targets into addresses, and says early if one does not answer.

Not here: choosing among addresses (the core does, by preference) and watching them. Next on the
path: ``../supervisor/epochs.py``.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable

import gevent
from gevent import socket as gevent_socket

from pyproxy.config.compiled import Address, TargetAddress, show_endpoint
from pyproxy.limits import TARGET_PROBE_S
from pyproxy.log import log_event

_log = logging.getLogger("pyproxy.controller")


class Resolver:
    """Resolves targets, and tells each name that cannot be resolved once, until it can again."""

    def __init__(self) -> None:
        """Start without having told anything."""
        self._told: set[TargetAddress] = set()

    def resolve(self, targets: Iterable[TargetAddress]) -> dict[TargetAddress, list[Address]]:
        """Return the addresses of each target that has some; blocks only the calling greenlet."""
        found = {}
        for target in targets:
            try:
                found[target] = resolve(target)
                self._told.discard(target)
            except OSError as error:
                if target not in self._told:
                    self._told.add(target)
                    hint = "check the name and the resolver; trying again"
                    reason = error.strerror or str(error)
                    fields = {"target": target, "reason": reason, "hint": hint}
                    log_event(_log, logging.ERROR, "target_unresolved", **fields)
        return found


def resolve(target: TargetAddress) -> list[Address]:
    """Return the addresses of one target, the system's preference first; raises ``OSError``."""
    literal = target.literal()
    if literal is not None:
        return [literal]
    found = gevent_socket.getaddrinfo(target.host, target.port, 0, socket.SOCK_STREAM)
    addresses = [{"tcp": show_endpoint(str(each[0]), target.port)} for *_, each in found]
    return [each for index, each in enumerate(addresses) if each not in addresses[:index]]


def probe_all(targets: Iterable[TargetAddress]) -> None:
    """Connect to each target once and log one line for each that does not answer."""
    for target in targets:
        try:
            with gevent.Timeout(TARGET_PROBE_S, TimeoutError("no answer")):
                _connect(target)
        except OSError as error:
            hint = "is the database up, and host and port right? clients wait until it answers"
            reason = error.strerror or str(error)
            fields = {"target": target, "reason": reason, "hint": hint}
            log_event(_log, logging.ERROR, "target_unreachable", **fields)


def _connect(target: TargetAddress) -> None:
    if target.host.startswith("/"):
        with gevent_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(target.unix_path())
    else:
        gevent_socket.create_connection((target.host, target.port)).close()
