"""A worker is stuck after two looks on time without a beat, and never because the looker was late.

Not here: killing it (`../process/test_arbiter.py`). Next on the path: `test_epochs.py`.
"""

from __future__ import annotations

from pyproxy.limits import FIRST_BEAT_S, LOOK_LATE_S, LOOK_S
from pyproxy.supervisor.heartbeats import Heartbeats, Sight

STARTED = -100.0


def sight(beat: int, incarnation: int = 1, started: float = STARTED, worker: int = 0) -> Sight:
    return Sight(worker, incarnation, started, beat)


def test_two_looks_on_time_without_a_beat_and_no_fewer() -> None:
    beats = Heartbeats(0.0)
    assert beats.look(2.0, [sight(7)]) == []
    assert beats.look(4.0, [sight(7)]) == []
    assert beats.look(6.0, [sight(7)]) == [0]


def test_a_beat_in_between_starts_anew() -> None:
    beats = Heartbeats(0.0)
    for now, beat in ((2.0, 7), (4.0, 7), (6.0, 8), (8.0, 8)):
        assert beats.look(now, [sight(beat)]) == []
    assert beats.look(10.0, [sight(8)]) == [0]


def test_looks_that_come_late_count_for_nothing() -> None:
    beats = Heartbeats(0.0)
    now = 0.0
    for _ in range(10):
        now = beats.due + LOOK_LATE_S + 0.1
        assert beats.look(now, [sight(7)]) == []
    assert beats.look(now + LOOK_S, [sight(7)]) == []
    assert beats.look(now + 2 * LOOK_S, [sight(7)]) == [0]


def test_a_new_life_of_the_same_number_is_another_worker() -> None:
    beats = Heartbeats(0.0)
    beats.look(2.0, [sight(7)])
    beats.look(4.0, [sight(7)])
    assert beats.look(6.0, [sight(7, incarnation=2)]) == []
    assert beats.look(8.0, [sight(7, incarnation=2)]) == []
    assert beats.look(10.0, [sight(7, incarnation=2)]) == [0]


def test_a_worker_that_starts_gets_longer_for_its_first_beat() -> None:
    beats = Heartbeats(0.0)
    now = 0.0
    stuck: list[int] = []
    while not stuck:
        now += LOOK_S
        stuck = beats.look(now, [sight(0, started=0.0)])
    assert now >= FIRST_BEAT_S + LOOK_S


def test_only_the_stuck_one_of_several_is_named() -> None:
    beats = Heartbeats(0.0)
    for turn in range(1, 3):
        beats.look(2.0 * turn, [sight(turn, worker=0), sight(5, worker=1)])
    assert beats.look(6.0, [sight(3, worker=0), sight(5, worker=1)]) == [1]
