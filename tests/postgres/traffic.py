"""Traffic for tests that break things under load: clients that judge each transaction, a census.

A client sends transactions that return its own tag and says of each whether it was answered, ended
between two transactions (57P01, which a drain may do) or broken. The census counts server processes
by their titles, so that counting takes no connection. Not here: which process a test ends
(`test_workers.py`). Next on the path: `test_workers.py`.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.postgres.load import seed
from tests.wire import (
    Message,
    SilenceError,
    Wire,
    WireError,
    bind,
    execute,
    parse,
    query,
    row,
    sync,
)

SAMPLE_EVERY_S = 0.05
ADMIN_SHUTDOWN = "57P01"


class EndedError(Exception):
    """The proxy ended the client with 57P01 between two transactions."""


def is_running(pid: int) -> bool:
    """Return whether a process runs; one that has ended and is not reaped yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0 ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def backends(server: Postgres, users: Iterable[str]) -> set[int]:
    """Return the process ids of a server's connections of these users, all alive at one moment."""
    assert server.process is not None
    pid = server.process.pid
    wanted = re.compile(rf"postgres: (?:{'|'.join(map(re.escape, users))}) ")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = {int(child) for child in children if wanted.match(_title(int(child)))}
    # One that ended while the others were looked at does not count together with them.
    return {each for each in found if wanted.match(_title(each))}


@dataclass
class Census:
    """The most connections at a time, and how often they were counted."""

    most: int = 0
    samples: int = 0


@contextmanager
def census(server: Postgres, budget: int, *users: str) -> Iterator[Census]:
    """Count the connections of these users all the while; fail if there were ever too many."""
    counted, stop = Census(), threading.Event()

    def count() -> None:
        while not stop.wait(SAMPLE_EVERY_S):
            counted.most = max(counted.most, len(backends(server, users)))
            counted.samples += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield counted
    finally:
        stop.set()
        thread.join()
    assert counted.samples > 0
    assert counted.most <= budget, f"{counted.most} connections with a budget of {budget}"


@dataclass
class Guest:
    """One client of the traffic, in a thread of its own.

    `done` counts answered transactions, `broken` tells of the others, `ended` has the times
    (monotonic seconds) of 57P01 between transactions, `refused` why it could not log in.
    """

    front: Proxy
    name: str
    user: str
    database: str
    pause_ms: float
    again: bool
    stop: threading.Event
    dice: random.Random
    done: int = 0
    broken: list[str] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    busy_s: float = 0.0
    thread: threading.Thread | None = None
    _serial: int = 0
    _open: bool = False
    _named: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Log in and send transactions until told to stop."""
        while not self.stop.is_set():
            try:
                wire = self.front.wire(self.user, self.database, application_name=self.name)
            except (WireError, OSError) as error:
                self.refused.append(str(error))
            else:
                self._visit(wire)
            if not self.again:
                return
            self.stop.wait(0.02)

    def _visit(self, wire: Wire) -> None:
        self._named.clear()
        try:
            while not self.stop.is_set():
                began = time.monotonic()
                self._open = False
                self.dice.choice((self._simple, self._prepared, self._block, self._own_name))(wire)
                took = time.monotonic() - began
                self.busy_s += took
                self.slowest_s = max(self.slowest_s, took)
                self.done += 1
        except EndedError:
            self.ended.append(time.monotonic())
        except (WireError, OSError) as error:
            self.broken.append(f"{self.name}: {type(error).__name__} {error}")
        finally:
            wire.close()

    def _tag(self) -> str:
        self._serial += 1
        return f"{self.name}/{self._serial}"

    def _sleep(self) -> str:
        return f"pg_sleep({self.pause_ms / 1000 * self.dice.random():.6f})"

    def _simple(self, wire: Wire) -> None:
        tag = self._tag()
        wire.send(query(f"SELECT '{tag}' FROM {self._sleep()}"))
        self._check(wire, tag)

    def _prepared(self, wire: Wire) -> None:
        """A statement prepared once; some have the same text for all clients, some their own."""
        tag, number = self._tag(), self.dice.randrange(4)
        name = f"s{number}"
        own = "" if number < 2 else f"/{self.name}"
        if name in self._named:
            wire.send(bind("", name, [tag.encode()]) + execute() + sync())
        else:
            text = f"SELECT $1::text || '{own}/{name}'"
            wire.send(parse(name, text), bind("", name, [tag.encode()]), execute(), sync())
            self._named.add(name)
        self._check(wire, f"{tag}{own}/{name}")

    def _block(self, wire: Wire) -> None:
        tag = self._tag()
        wire.send(query("BEGIN"))
        self._check(wire)
        self._open = True
        for _ in range(self.dice.randrange(1, 3)):
            wire.send(query(f"SELECT '{tag}' FROM {self._sleep()}"))
            self._check(wire, tag)
        wire.send(query("COMMIT"))
        self._check(wire)

    def _own_name(self, wire: Wire) -> None:
        wire.send(query("SELECT current_setting('application_name')"))
        self._check(wire, self.name)

    def _check(self, wire: Wire, *want: str) -> None:
        """Read one reply: exactly these values, or the end between two transactions."""
        seen: list[Message] = []
        while not seen or seen[-1].tag != "Z":
            got = wire.message()
            seen.append(got)
            if got.tag == "E":
                fields = got.fields()
                is_end = fields["C"] == ADMIN_SHUTDOWN and fields["S"] == "FATAL"
                if is_end and not self._open and len(seen) == 1:
                    raise EndedError
                raise WireError(f"{fields['S']} {fields['C']} {fields['M']}, open={self._open}")
        values = [(row(each)[0] or b"").decode() for each in seen if each.tag == "D"]
        if values != list(want):
            raise WireError(f"wanted {want}, got {values}")


@dataclass
class Traffic:
    """All clients of one `traffic`."""

    guests: list[Guest]

    @property
    def done(self) -> int:
        """Transactions that were answered."""
        return sum(guest.done for guest in self.guests)

    @property
    def broken(self) -> list[str]:
        """What went wrong, of all clients: failed transactions and refused log-ins."""
        return [text for guest in self.guests for text in (*guest.broken, *guest.refused)]

    def running(self) -> list[Guest]:
        """Return the clients that still go on."""
        return [each for each in self.guests if each.thread is not None and each.thread.is_alive()]

    def wait(self, transactions: int, guests: Iterable[Guest] = (), seconds: float = 30.0) -> None:
        """Wait until each of these clients (all unless said) has done this many more."""
        chosen = list(guests) or self.guests
        goals = {guest.name: guest.done + transactions for guest in chosen}

        def late() -> list[str]:
            return [guest.name for guest in chosen if guest.done < goals[guest.name]]

        what = f"{transactions} transactions of {', '.join(goals)}; {self.broken[:5]}"
        wait_until(lambda: not late(), what, seconds)


@contextmanager
def traffic(
    front: Proxy,
    count: int,
    *,
    users: tuple[str, ...] = ("app",),
    databases: tuple[str, ...] = ("test",),
    pause_ms: float = 4.0,
    again: bool = False,
    name: str = "load",
) -> Iterator[Traffic]:
    """Run `count` clients, each with its own `application_name` (`load-0` …), until the block ends.

    They take turns over `users` and `databases`, work up to `pause_ms` a statement, and with
    `again` come back after an end. Each has done a transaction when the block begins.
    """
    stop, start = threading.Event(), seed()
    guests = []
    for number in range(count):
        user = users[number % len(users)]
        database = databases[number // len(users) % len(databases)]
        dice = random.Random(start + number)
        title = f"{name}-{number}"
        guest = Guest(front, title, user, database, pause_ms, again, stop, dice)
        guest.thread = threading.Thread(target=guest.run, daemon=True)
        guests.append(guest)
    made = Traffic(guests)
    for guest in guests:
        assert guest.thread is not None
        guest.thread.start()
    try:
        made.wait(1)
        yield made
    finally:
        stop.set()
        for guest in guests:
            assert guest.thread is not None
            guest.thread.join(30)
    hanging = [guest.name for guest in made.running()]
    if hanging:
        raise SilenceError(f"clients hang: {hanging}")


def timed(what: str, action: Callable[[], object]) -> float:
    """Do something, print how long it took, and return that in seconds."""
    began = time.monotonic()
    action()
    took = time.monotonic() - began
    print(f"measured: {what}: {took * 1000:.0f} ms")
    return took
