"""A child that crashes is started again at once, then later and later, until that is hopeless.

Not here: processes (`../process/test_arbiter.py`). Next on the path: `test_heartbeats.py`.
"""

from __future__ import annotations

from pyproxy.limits import BACKOFF_MAX_S, CRASH_WINDOW_S
from pyproxy.supervisor.restarts import Restarts


def test_the_first_crash_is_made_up_for_at_once_and_the_pause_then_doubles_up_to_a_bound() -> None:
    restarts = Restarts()
    pauses = [restarts.note(now, 0.0) for now in range(9)]
    assert pauses == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, BACKOFF_MAX_S]
    assert restarts.count == 9


def test_a_long_life_makes_the_next_crash_a_first_one() -> None:
    restarts = Restarts()
    for now in range(4):
        restarts.note(now, 0.0)
    assert restarts.note(100.0, CRASH_WINDOW_S + 1) == 0.0
    assert restarts.note(100.5, 0.5) == 0.1


def test_five_crashes_in_thirty_seconds_are_hopeless() -> None:
    restarts = Restarts()
    for now in (0.0, 1.0, 2.0, 29.0):
        restarts.note(now, 0.0)
        assert not restarts.is_hopeless()
    restarts.note(30.0, 0.0)
    assert restarts.is_hopeless()


def test_five_crashes_over_a_longer_time_are_not() -> None:
    restarts = Restarts()
    for now in (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0):
        restarts.note(now, 9.0)
        assert not restarts.is_hopeless()
