"""What supervisor and controller tell each other: one JSON datagram a message, on a socket pair.

Down: ``{"targets": [[host, port], …]}``, the targets that count now. Up: ``{"found": [[host, port,
[address, …]], …]}``, what names resolved to. Each message is whole and the newest one counts, so a
controller that starts again needs no other history. Not here: sending. Next on the path:
``main.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from pyproxy.config.compiled import Address, TargetAddress


def write_targets(targets: Iterable[TargetAddress]) -> bytes:
    """Write the message down."""
    return json.dumps({"targets": list(targets)}).encode()


def read_targets(message: bytes) -> list[TargetAddress]:
    """Read the message down."""
    return [TargetAddress(host, port) for host, port in json.loads(message)["targets"]]


def write_found(found: Mapping[TargetAddress, list[Address]]) -> bytes:
    """Write the message up."""
    rows = [[*target, addresses] for target, addresses in found.items()]
    return json.dumps({"found": rows}).encode()


def read_found(message: bytes) -> dict[TargetAddress, list[Address]]:
    """Read the message up; raises ``ValueError`` or ``KeyError`` for what is none."""
    rows = json.loads(message)["found"]
    return {TargetAddress(host, port): addresses for host, port, addresses in rows}
