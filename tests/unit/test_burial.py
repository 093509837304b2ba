"""A dead worker's inbox is emptied until its successor reads it: `pyproxy/supervisor/arbiter.py`.

Not here: deaths of real processes (`../process/test_arbiter.py`). Next on the path:
`../process/test_arbiter.py`.
"""

from __future__ import annotations

import os
import select
from types import SimpleNamespace

from pyproxy.supervisor.arbiter import Arbiter
from pyproxy.supervisor.boxes import Boxes
from pyproxy.supervisor.children import Children
from pyproxy.supervisor.loop import Loop


def undertaker() -> tuple[Arbiter, Boxes, Loop]:
    """Return an arbiter that can bury, its mailboxes and its loop."""
    boxes, loop = Boxes(), Loop()
    arbiter = object.__new__(Arbiter)
    vars(arbiter).update(
        _estate=SimpleNamespace(boxes=boxes, page=SimpleNamespace(bury=lambda _worker: 0)),
        _children=Children(),
        _loop=loop,
        _buried=set(),
    )
    return arbiter, boxes, loop


def is_closed(reader: int) -> bool:
    return bool(select.select([reader], [], [], 0)[0]) and os.read(reader, 1) == b""


def send(boxes: Boxes, worker: int) -> int:
    """Send the write end of a pipe as mail and return the read end."""
    reader, writer = os.pipe()
    assert boxes.send(worker, b"\x01", [writer])
    os.close(writer)
    return reader


def test_mail_that_comes_after_the_burial_is_closed_until_the_worker_is_back() -> None:
    arbiter, boxes, loop = undertaker()
    before = send(boxes, 1)
    arbiter._bury(1)
    assert is_closed(before)
    late = send(boxes, 1)
    assert not is_closed(late)
    loop.turn(5)
    assert is_closed(late)
    other = send(boxes, 2)
    arbiter._hand_inbox(1)
    own = send(boxes, 1)
    loop.turn(0)
    assert not is_closed(own)
    assert not is_closed(other)
    assert boxes.drain(1) == (1, 1)
    assert boxes.drain(2) == (1, 1)
    for reader in (before, late, other, own):
        os.close(reader)
    boxes.close_inboxes()
    boxes.close_outboxes()
