"""The table of children: who runs in which life, how each starts, and what is left after its end.

A child is named by its role, ``worker 3``, ``controller`` or ``admin``; each start is an
incarnation, counted over all workers of the service, so that messages of two lives never mix. Not
here: when to start or stop one (``arbiter.py``). Next on the path: ``forking.py``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyproxy.supervisor.forking import Forked, fork_child
from pyproxy.supervisor.lastwords import LastWords
from pyproxy.supervisor.restarts import Restarts


@dataclass(frozen=True)
class Role:
    """What a child is: a worker with its number (0–63), or one of the two others."""

    name: str
    worker: int | None = None

    @classmethod
    def of_worker(cls, number: int) -> Role:
        """Return the role of a worker."""
        return cls(f"worker {number}", number)


CONTROLLER = Role("controller")
ADMIN = Role("admin")


@dataclass
class Child:
    """A running child. ``kill_at`` is when it is killed unless it has ended (monotonic seconds)."""

    role: Role
    forked: Forked
    incarnation: int
    started: float
    leaving: bool = False
    quit_at: float = float("inf")
    kill_at: float = float("inf")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.forked.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal; to this process, never to another that got its id."""
        signal.pidfd_send_signal(self.forked.pidfd, number)


@dataclass(frozen=True)
class Ended:
    """How a child ended: with an exit code, or by a signal."""

    child: Child
    code: int | None
    signal: str | None


class Children:
    """All children that run, by role, with what is kept over their lives."""

    def __init__(self) -> None:
        """Start without any."""
        self._running: dict[Role, Child] = {}
        self._words: dict[Role, LastWords] = {}
        self._restarts: dict[Role, Restarts] = {}
        self._incarnations = 0

    def __iter__(self) -> Iterator[Child]:
        """Go through those that run."""
        return iter(list(self._running.values()))

    def get(self, role: Role) -> Child | None:
        """Return the running child of a role."""
        return self._running.get(role)

    def workers(self) -> list[Child]:
        """Return the running workers by number."""
        found = [each for each in self._running.values() if each.role.worker is not None]
        return sorted(found, key=lambda each: each.role.worker or 0)

    def numbers(self) -> list[int]:
        """Return the numbers of the running workers."""
        return [each.role.worker for each in self.workers() if each.role.worker is not None]

    def words(self, role: Role) -> LastWords:
        """Return the last words of a role."""
        if role not in self._words:
            self._words[role] = LastWords(role.name)
        return self._words[role]

    def restarts(self, role: Role) -> Restarts:
        """Return the crashes of a role."""
        return self._restarts.setdefault(role, Restarts())

    def start(
        self,
        role: Role,
        main: Callable[[int], int],
        prepare: Callable[[], None],
        now: float,
    ) -> Child:
        """Fork a child of a role; ``main`` gets the incarnation and returns the exit code.

        ``prepare`` is called first in the child: it closes what is not the child's.
        """
        words = self.words(role)
        words.clear()
        incarnation = 0
        if role.worker is not None:
            self._incarnations += 1
            incarnation = self._incarnations

        def begin() -> None:
            words.record()
            for other in self._running.values():
                os.close(other.forked.pidfd)
            for each in self._words.values():
                if each is not words:
                    os.close(each.descriptor)
            prepare()

        forked = fork_child(
            lambda: main(incarnation), prepare=begin, lament=words.add, signals_blocked=True
        )
        child = Child(role, forked, incarnation, now)
        self._running[role] = child
        return child

    def reap(self, child: Child) -> Ended | None:
        """Take a child out of the table if it has ended; None if it has not."""
        result = os.waitid(os.P_PIDFD, child.forked.pidfd, os.WEXITED | os.WNOHANG)
        if result is None:
            return None
        os.close(child.forked.pidfd)
        del self._running[child.role]
        if result.si_code == os.CLD_EXITED:
            return Ended(child, result.si_status, None)
        known = {each.value: each.name for each in signal.Signals}
        return Ended(child, None, known.get(result.si_status, str(result.si_status)))
