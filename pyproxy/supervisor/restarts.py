"""How often a child has crashed, and so when it may start again. Pure: the time is an argument.

Not here: what a crash is, or starting anything (``arbiter.py``). Next on the path: ``children.py``.
"""

from __future__ import annotations

from collections import deque

from pyproxy.limits import BACKOFF_FIRST_S, BACKOFF_MAX_S, CRASH_WINDOW_S, CRASHES_MAX


class Restarts:
    """The crashes of one child. The first one is made up for at once, the next ones wait."""

    def __init__(self) -> None:
        """Start without a crash."""
        self._crashes: deque[float] = deque(maxlen=CRASHES_MAX)
        self._delay_s = 0.0
        self.count = 0

    def note(self, now: float, lived_s: float) -> float:
        """Note a crash at ``now`` after a life of ``lived_s`` seconds; return the pause in seconds.

        The pause is 0 for a first crash, then doubles from ``BACKOFF_FIRST_S`` to
        ``BACKOFF_MAX_S``; a life longer than ``CRASH_WINDOW_S`` makes a crash a first one again.
        """
        self.count += 1
        self._crashes.append(now)
        if lived_s > CRASH_WINDOW_S:
            self._delay_s = 0.0
        pause = self._delay_s
        self._delay_s = min(max(self._delay_s * 2, BACKOFF_FIRST_S), BACKOFF_MAX_S)
        return pause

    def is_hopeless(self) -> bool:
        """Return whether the latest crash was one of ``CRASHES_MAX`` within ``CRASH_WINDOW_S``."""
        crashes = self._crashes
        return len(crashes) == CRASHES_MAX and crashes[-1] - crashes[0] <= CRASH_WINDOW_S
