"""Turns configured targets into addresses, and says early if one does not answer.

Not here: choosing among targets (the core does, by preference) and watching them. Next on the path:
``main.py``.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable

import gevent
from gevent import socket as gevent_socket

from pyproxy.config.compile import TargetAddress
from pyproxy.limits import RESOLVE_RETRY_S, TARGET_PROBE_S
from pyproxy.log import log_event

_log = logging.getLogger("pyproxy.worker")


def resolve_all(targets: Iterable[TargetAddress]) -> list[dict[str, str]]:
    """Resolve every target, by preference; wait until at least one has an address.

    Each name that cannot be resolved is told once. Blocks only the calling greenlet.
    """
    told: set[TargetAddress] = set()
    while True:
        addresses: list[dict[str, str]] = []
        for target in targets:
            try:
                addresses += [each for each in _resolve(target) if each not in addresses]
            except OSError as error:
                if target not in told:
                    told.add(target)
                    hint = "check the name and the resolver; trying again"
                    reason = error.strerror or str(error)
                    fields = {"target": target, "reason": reason, "hint": hint}
                    log_event(_log, logging.ERROR, "target_unresolved", **fields)
        if addresses:
            return addresses
        gevent.sleep(RESOLVE_RETRY_S)


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


def _resolve(target: TargetAddress) -> list[dict[str, str]]:
    if target.host.startswith("/"):
        return [{"unix": target.unix_path()}]
    found = gevent_socket.getaddrinfo(target.host, target.port, 0, socket.SOCK_STREAM)
    return [{"tcp": _show(str(address[0]), target.port)} for *_, address in found]


def _show(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _connect(target: TargetAddress) -> None:
    if target.host.startswith("/"):
        with gevent_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(target.unix_path())
    else:
        gevent_socket.create_connection((target.host, target.port)).close()
