"""T27: clients that select only their own tag, under random pipelines, cancels and kills.

One row of another client fails the test. `PYPROXY_SEED` replays the choices of each client,
`PYPROXY_SCALE` says how long it goes on. Next on the path: `test_pgbench.py`.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from tests.fix_postgres import Postgres
from tests.fix_proxy import Proxy
from tests.postgres.load import sampled, scale, seed
from tests.wire import (
    Message,
    SilenceError,
    Wire,
    WireError,
    batch,
    bind,
    close,
    execute,
    flush,
    parse,
    query,
    row,
    send_cancel,
    sync,
)

Maker = Callable[..., Proxy]
CLIENTS = 24
SERVERS = 4
TURNS = 5000
# Cancelled, division by zero, and what follows them inside a transaction.
CALM = frozenset({"57014", "22012", "25P02"})
# Where servers are killed, too.
KILLED = CALM | {"57P01", "57P02", "08006"}


class ForeignRowError(AssertionError):
    """A row that belongs to somebody else, or in the wrong place."""


class StartAnewError(Exception):
    """An error that may have left a statement's name unprepared: the client starts anew."""


@dataclass
class Tagged:
    """One client: it sends requests that return its own tags and checks each row.

    `forgiven` are the SQLSTATEs that may come instead of rows; where servers are killed the end of
    the connection may, too. Silence is never forgiven.
    """

    front: Proxy
    number: int
    dice: random.Random
    forgiven: frozenset[str]
    wire: Wire | None = None
    serial: int = 0
    turns: int = 0
    named: dict[str, str] = field(default_factory=dict)
    expected: list[str] = field(default_factory=list)

    def run(self, turns: int) -> int:
        """Do a number of random things; return how many were answered as they should."""
        for _ in range(turns):
            try:
                self.turn()
                self.turns += 1
            except StartAnewError:
                self.leave()
            except SilenceError as silence:
                raise ForeignRowError(f"client {self.number} hangs: {silence}") from silence
            except (WireError, OSError):
                if self.forgiven == CALM:
                    raise
                self.leave()
        if self.wire is not None:
            self.wire.close()
        return self.turns

    def leave(self) -> None:
        """Forget the connection; it is closed hard."""
        if self.wire is not None:
            self.wire.reset()
        self.wire = None
        self.named.clear()

    def tag(self) -> str:
        """Return a tag that nobody else ever uses."""
        self.serial += 1
        return f"c{self.number}-{self.serial}"

    def turn(self) -> None:
        """Do one random thing."""
        if self.wire is None:
            self.wire = self.front.wire()
        acts = (
            self.simple,
            self.pipeline,
            self.pipeline,
            self.transaction,
            self.copy,
            self.flushed,
        )
        choice = self.dice.random()
        if choice < 0.02:
            self.vanish(self.wire)
        elif choice < 0.06:
            self.cancelled(self.wire)
        else:
            self.dice.choice(acts)(self.wire)

    def simple(self, wire: Wire) -> None:
        """One or more simple queries in one write."""
        tags = [self.tag() for _ in range(self.dice.randrange(1, 5))]
        wire.send(*(query(f"SELECT '{tag}'") for tag in tags))
        for tag in tags:
            self.check(wire.until("Z"), [tag])

    def statement(self) -> tuple[bytes, list[str]]:
        """Return one batch without its Sync, and the rows to expect."""
        tag, kind = self.tag(), self.dice.random()
        text = f"SELECT $1::text || '/{self.number}'"
        want = [f"{tag}/{self.number}"]
        if kind < 0.4:
            return parse("", text) + bind("", "", [tag.encode()]) + execute(), want
        name = f"s{self.dice.randrange(8)}"
        again = f"{text} || '/{name}'"
        want = [f"{tag}/{self.number}/{name}"]
        data = bind("", name, [tag.encode()]) + execute()
        if kind < 0.5:
            data += close("S", name)
            first = b"" if name in self.named else parse(name, again)
            self.named.pop(name, None)
            return first + data, want
        if name in self.named:
            return data, want
        self.named[name] = again
        return parse(name, again) + data, want

    def pipeline(self, wire: Wire) -> None:
        """Many batches in one write, some of which fail."""
        out = b""
        wants: list[list[str]] = []
        for _ in range(self.dice.randrange(1, 12)):
            if self.dice.random() < 0.1:
                out += batch("SELECT 1/$1::int", [b"0"])
                wants.append([])
                continue
            data, want = self.statement()
            out += data + sync()
            wants.append(want)
        wire.send(out)
        for want in wants:
            self.check(wire.until("Z"), want)

    def transaction(self, wire: Wire) -> None:
        """A transaction over several round trips."""
        self.check(wire.ask("BEGIN"), [])
        for _ in range(self.dice.randrange(1, 4)):
            data, want = self.statement()
            wire.send(data + sync())
            self.check(wire.until("Z"), want)
        self.check(wire.ask(self.dice.choice(("COMMIT", "ROLLBACK"))), [])

    def copy(self, wire: Wire) -> None:
        """COPY TO STDOUT of tags."""
        tag, count = self.tag(), self.dice.randrange(1, 200)
        wire.send(query(f"COPY (SELECT '{tag}' FROM generate_series(1, {count})) TO STDOUT"))
        self.check(wire.until("Z"), [f"{tag}\n"] * count)

    def flushed(self, wire: Wire) -> None:
        """A batch with Flush, a pause, then its Sync."""
        data, want = self.statement()
        wire.send(data + flush())
        seen = wire.until("C")
        wire.send(sync())
        self.check(seen + wire.until("Z"), want)

    def cancelled(self, wire: Wire) -> None:
        """A query and its cancel, which may come before, in time or late."""
        tag = self.tag()
        wire.send(query(f"SELECT '{tag}' FROM pg_sleep({self.dice.random() * 0.01})"))
        send_cancel(self.front.host, self.front.port, wire.pid, wire.secret)
        self.check(wire.until("Z"), [tag])

    def vanish(self, wire: Wire) -> None:
        """Send requests and go, with replies on the way."""
        wire.send(*(self.statement()[0] + sync() for _ in range(self.dice.randrange(1, 20))))
        if self.dice.random() < 0.5:
            wire.until("Z")
        self.leave()

    def check(self, seen: list[Message], want: list[str]) -> None:
        """Check the rows of one reply: exactly those wanted, or a forgivable error instead."""
        errors = [got.fields() for got in seen if got.tag == "E"]
        for error in errors:
            if error["C"] not in self.forgiven:
                raise ForeignRowError(f"client {self.number}: {error}")
        got = [(row(m)[0] or b"").decode() for m in seen if m.tag == "D"]
        got += [m.body.decode() for m in seen if m.tag == "d"]
        if got != (want[: len(got)] if errors else want):
            raise ForeignRowError(
                f"client {self.number} wants {want} and got {got}, errors {errors}"
            )
        if errors and (want or {error["C"] for error in errors} != {"22012"}):
            # A failed batch may or may not have prepared its names: start anew without them.
            raise StartAnewError


def killer(server: Postgres, stop: threading.Event, dice: random.Random) -> int:
    """End a random server process of the pool now and then; return how many."""
    ended = 0
    while not stop.wait(0.05 + dice.random() * 0.2):
        pids = [pid for pid, _, _ in server.backends("usename = 'postgres'")]
        if pids:
            server.sql("SELECT pg_terminate_backend(%s)", dice.choice(pids))
            ended += 1
    return ended


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [False, True], ids=["calm", "kills"])
@pytest.mark.parametrize(
    ("statements", "workers"),
    [(500, 1), (3, 1), (500, 3), (3, 3)],
    ids=["large-cache", "small-cache", "large-cache-3-workers", "small-cache-3-workers"],
)
def test_t27_no_client_ever_sees_a_row_of_another(
    kills: bool, statements: int, workers: int, postgres: Postgres, proxy: Maker
) -> None:
    """Every row is the client's own and in its place; the budget holds all the while."""
    pool = {"max_connections": SERVERS, "max_prepared_statements": statements}
    front = proxy(postgres, workers=workers, pool=pool)
    start, stop = seed(), threading.Event()
    turns = int(TURNS * scale())
    forgiven = KILLED if kills else CALM
    with (
        sampled(postgres, "usename = 'postgres'") as peak,
        ThreadPoolExecutor(CLIENTS + 1) as pool_of_threads,
    ):
        ending = (
            pool_of_threads.submit(killer, postgres, stop, random.Random(start)) if kills else None
        )
        try:
            running = [
                pool_of_threads.submit(
                    Tagged(front, n, random.Random(start + n), forgiven).run, turns
                )
                for n in range(CLIENTS)
            ]
            answered = [done.result() for done in running]
        finally:
            stop.set()
    assert sum(answered) > CLIENTS * turns * 0.7
    assert ending is None or ending.result() > 0
    # A server that is being ended may still be listed while its successor logs in.
    assert peak.most <= SERVERS * (2 if kills else 1)
