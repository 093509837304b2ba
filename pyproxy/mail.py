"""Mail to the engines: one datagram, kind first, descriptors beside it. Numbers are little-endian.

Not here: the boxes it goes to (``supervisor/boxes.py``), or what the engine does with it
(`rust/engine`). Next on the path: ``supervisor/boxes.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum


class Kind(IntEnum):
    """The first byte of a mail; the kinds between are sent by engines only."""

    POKE = 0
    EPOCH = 4
    SHOW = 5
    ORDER = 6


class Show(IntEnum):
    """What a SHOW mail asks for."""

    CLIENTS = 0
    SERVERS = 1
    POOLS = 2
    TARGETS = 3


class Verb(IntEnum):
    """What an ORDER mail orders."""

    KILL_DATABASE = 0
    KILL_CLIENT = 1


def poke() -> bytes:
    """Ask an engine to look at the page."""
    return bytes([Kind.POKE])


def epoch(number: int, listeners: Sequence[tuple[int, bool]]) -> bytes:
    """Announce settings; beside it go the settings' memfd and the listeners, in the same order.

    ``number`` is the epoch (from 1), ``listeners`` are (listener id, whether it is a Unix socket).
    """
    head = struct.pack("<BQB", Kind.EPOCH, number, len(listeners))
    return head + b"".join(struct.pack("<IB", each, unix) for each, unix in listeners)


def show(what: Show) -> bytes:
    """Ask for rows; beside it go a memfd for them and the write end of a pipe, closed when done."""
    return bytes([Kind.SHOW, what])


def order(verb: Verb, argument: str) -> bytes:
    """Order something; beside it goes the write end of a pipe for the number of clients ended."""
    return bytes([Kind.ORDER, verb]) + argument.encode()
