"""Events of the engine become log lines and answers, and a flood does not hold the hub.

Not here: the engine; a stand-in rings the same bell. Next on the path:
`../process/test_arbiter.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.monkey
import pytest

from pyproxy.limits import EVENTS_A_TURN
from pyproxy.worker.bridge import Bridge

Event = tuple[str, dict[str, Any]]


class StandIn:
    """Has the engine's bell and ring."""

    def __init__(self) -> None:
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.ring: list[Event] = []
        self.drained: list[int] = []
        self.derived: list[tuple[int, int, bytes, int]] = []
        self.threads: set[int] = set()
        self.knows_password = True

    def push(self, *events: Event) -> None:
        self.ring.extend(events)
        os.eventfd_write(self.event_fd, 1)

    def drain(self, most: int, /) -> list[Event]:
        taken, self.ring = self.ring[:most], self.ring[most:]
        self.drained.append(len(taken))
        return taken

    def derive_server_keys(
        self, credential: int, epoch: int, salt: bytes, iterations: int, /
    ) -> None:
        self.threads.add(gevent.monkey.get_original("threading", "get_ident")())
        self.derived.append((credential, epoch, salt, iterations))
        if not self.knows_password:
            raise ValueError("no password")


@pytest.fixture
def engine() -> Iterator[StandIn]:
    """An engine that does nothing by itself."""
    made = StandIn()
    yield made
    os.close(made.event_fd)


def turn_until(condition: Any) -> None:
    """Let the hub run until a condition holds."""
    with gevent.Timeout(10):
        while not condition():
            gevent.get_hub().loop.run_callback(lambda: None)
            gevent.idle()


def test_events_become_log_lines_without_their_kind_being_known(
    engine: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pyproxy.worker")
    woken: list[int] = []
    bridge = Bridge(engine, lambda: woken.append(1))
    engine.push(
        ("login_failed", {"peer": "127.0.0.1", "user": "app", "reason": "no such user"}),
        ("log", {"level": "error", "text": "accept paused"}),
        ("something_new", {"a": 1}),
    )
    turn_until(lambda: woken)
    bridge.close()
    told = [(record.getMessage(), record.levelno) for record in caplog.records]
    assert told == [
        ("login_failed", logging.WARNING),
        ("engine", logging.ERROR),
        ("something_new", logging.INFO),
    ]


def test_server_keys_are_derived_off_the_hub_and_once_for_the_same_question(
    engine: StandIn,
) -> None:
    bridge = Bridge(engine, lambda: None)
    question = {"credential": 0, "epoch": 3, "salt": [1] * 16, "iterations": 4096}
    engine.push(("server_keys_needed", question), ("server_keys_needed", question))
    turn_until(lambda: engine.derived)
    bridge.close()
    assert engine.derived == [(0, 3, bytes([1] * 16), 4096)]
    assert gevent.monkey.get_original("threading", "get_ident")() not in engine.threads


def test_a_question_without_a_password_is_logged(
    engine: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    engine.knows_password = False
    bridge = Bridge(engine, lambda: None)
    question = {"credential": 7, "epoch": 1, "salt": b"s", "iterations": 1}
    engine.push(("server_keys_needed", question))
    turn_until(lambda: caplog.records)
    bridge.close()
    assert caplog.records[0].getMessage() == "server_keys_not_derived"


def test_a_flood_is_taken_in_bounded_parts(engine: StandIn) -> None:
    bridge = Bridge(engine, lambda: None)
    engine.push(*[("unpinned", {"client": n}) for n in range(3 * EVENTS_A_TURN + 1)])
    turn_until(lambda: not engine.ring)
    bridge.close()
    assert engine.drained[:4] == [EVENTS_A_TURN, EVENTS_A_TURN, EVENTS_A_TURN, 1]
