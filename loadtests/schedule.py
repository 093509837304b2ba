"""When each request of a load test is meant to begin, and how late it was answered.

The schedule is open: it does not wait for answers. A request that begins late, because all clients
are still busy, is charged for the time since it should have begun; measured from its real start, a
service that stands still would look quick (coordinated omission). Pure: no clock, no Locust. Next
on the path: `shapes.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """`count` starts, `per_second` of them a second from `start_s` on (seconds of one clock)."""

    start_s: float
    per_second: float
    count: int

    def intended_s(self, number: int) -> float:
        """Return when start `number` (from 0) is meant to be."""
        return self.start_s + number / self.per_second


@dataclass(frozen=True)
class Timing:
    """One request: when it was meant to begin, when it did, when it ended, in seconds.

    `left_out_s` is time between begin and end that is nobody's answer: the client's own pauses.
    """

    intended_s: float
    begun_s: float
    ended_s: float
    left_out_s: float = 0.0

    @property
    def service_ms(self) -> float:
        """The time from the real start: what the service itself took."""
        return (self.ended_s - self.begun_s - self.left_out_s) * 1e3

    @property
    def latency_ms(self) -> float:
        """The time from the intended start: what a client that came on time has waited.

        A request that begins early is charged from its real start, never less.
        """
        return self.service_ms + max(0.0, self.begun_s - self.intended_s) * 1e3


class Arrivals:
    """Hands out the numbers of a schedule in order, each once, to whichever client is free."""

    def __init__(self, per_second: float, count: int, lead_s: float) -> None:
        """Plan `count` arrivals; the first is meant to be `lead_s` seconds after the first take."""
        self.per_second = per_second
        self.count = count
        self.lead_s = lead_s
        self.taken = 0
        self.schedule: Schedule | None = None

    def take(self, now_s: float) -> tuple[int, float] | None:
        """Return the next number and its intended start, None when all have been handed out."""
        if self.schedule is None:
            self.schedule = Schedule(now_s + self.lead_s, self.per_second, self.count)
        if self.taken == self.count:
            return None
        number = self.taken
        self.taken += 1
        return number, self.schedule.intended_s(number)
