"""Which workers are stuck, judged by their heartbeats. Pure: beats and time are arguments.

A worker is stuck when two looks in a row, both made on time, found the beat of the look before. A
look that comes late counts for nothing: whatever stopped the supervisor stopped the workers, too.
Not here: reading the page, killing (``arbiter.py``). Next on the path: ``restarts.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyproxy.limits import FIRST_BEAT_S, LOOK_LATE_S, LOOK_S, LOOKS_MISSED_MAX


@dataclass(frozen=True)
class Sight:
    """What one look saw of one worker: which life of it, since when, and its beat."""

    worker: int
    incarnation: int
    started: float
    beat: int


class Heartbeats:
    """The beats of the last look, and how many looks each worker has missed."""

    def __init__(self, now: float) -> None:
        """Begin; the first look is due ``LOOK_S`` after ``now``."""
        self.due = now + LOOK_S
        self._known: dict[int, tuple[Sight, int]] = {}

    def look(self, now: float, sights: Iterable[Sight]) -> list[int]:
        """Take a look and return the numbers of the workers that are stuck.

        ``sights`` is every worker that runs; call it when ``now`` has reached ``due``.
        """
        on_time = now - self.due <= LOOK_LATE_S
        self.due = now + LOOK_S
        known, self._known = self._known, {}
        stuck = []
        for sight in sights:
            before, missed = known.get(sight.worker, (sight, 0))
            new = before is sight or before.incarnation != sight.incarnation
            starting = sight.beat == 0 and now - sight.started < FIRST_BEAT_S
            if new or starting or before.beat != sight.beat:
                missed = 0
            elif on_time:
                missed += 1
            self._known[sight.worker] = (sight, missed)
            if missed >= LOOKS_MISSED_MAX:
                stuck.append(sight.worker)
        return stuck
