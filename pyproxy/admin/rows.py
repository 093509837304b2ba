"""Rows of the live workers: asks each engine by mail, and waits for all within one deadline.

An engine writes its rows into a memfd and closes a pipe. One that dies or hangs meanwhile is named
as silent; the answer is then partial, never late. Not here: the socket (``main.py``). Next on the
path: `rust/engine`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gevent
from gevent import socket as gevent_socket

from pyproxy import _core
from pyproxy.limits import ANSWER_BYTES_MAX, ORDER_S, WORKERS_MAX
from pyproxy.mail import Show, show
from pyproxy.plainsocket import close_now, send_with_descriptors

SHOWN = {each.name.lower(): each for each in Show}
"""What can be asked for, by name."""


_KEYS = {"pools": ("database", "user"), "targets": ("addr",)}
"""What names a row that several workers have: the service is one proxy, so it is shown once."""
_LARGEST = ("maxwait_us",)


def merge(what: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make one row of those of all workers where the table is the service's: pools and targets.

    Numbers are added up but for waits, of which the longest counts; of texts the first counts. A
    target answers if every worker says so; any other flag is set if one worker's is.
    """
    keys = _KEYS.get(what)
    if keys is None:
        return list(rows)
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        own = {name: value for name, value in row.items() if name != "worker"}
        sum_ = merged.setdefault(tuple(row[key] for key in keys), own)
        if sum_ is not own:
            for name, value in own.items():
                sum_[name] = _added(name, sum_[name], value)
    return list(merged.values())


def _added(name: str, one: Any, other: Any) -> Any:
    if isinstance(one, bool):
        return one and other if name == "answers" else one or other
    if isinstance(one, int):
        return max(one, other) if name in _LARGEST else one + other
    return other if one is None else one


@dataclass(frozen=True)
class Rows:
    """The rows of all workers that answered, and the numbers of those that did not."""

    rows: list[dict[str, Any]]
    silent: list[int]


def alive(page: _core.Page) -> list[int]:
    """Return the numbers of the workers that serve."""
    return [number for number in range(WORKERS_MAX) if page.worker(number)["alive"]]


def collect(page: _core.Page, outboxes: Sequence[Any], what: str) -> Rows:
    """Ask every live worker for ``what`` (a key of ``SHOWN``); return the service's rows.

    Takes at most ``ORDER_S`` seconds; blocks only the calling greenlet.
    """
    asked = {number: gevent.spawn(_ask, outboxes[number], SHOWN[what]) for number in alive(page)}
    gevent.joinall(list(asked.values()), ORDER_S)
    rows: list[dict[str, Any]] = []
    silent: list[int] = []
    for number, greenlet in asked.items():
        found = greenlet.value if greenlet.successful() else None
        if found is None:
            silent.append(number)
        else:
            rows += [{"worker": number, **row} for row in found]
    gevent.killall(list(asked.values()), block=True)
    return Rows(merge(what, rows), silent)


def _ask(outbox: Any, what: Show) -> list[dict[str, Any]] | None:
    """Ask one engine; None if it takes no mail, or ended without rows."""
    memory = os.memfd_create("pyproxy rows", os.MFD_CLOEXEC)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        sent = send_with_descriptors(outbox, show(what), [memory, writer])
        close_now(writer)
        writer = -1
        if not sent:
            return None
        gevent_socket.wait_read(reader)
        raw = os.pread(memory, ANSWER_BYTES_MAX, 0)
        rows: list[dict[str, Any]] | None = json.loads(raw) if raw else None
        return rows
    finally:
        for descriptor in (memory, reader, writer):
            if descriptor >= 0:
                close_now(descriptor)
