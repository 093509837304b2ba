"""Tenants behind row-level security: nobody ever has another one's `app.tenant_id`, or sees a row.

Each client is one tenant and knows what its session holds; servers are killed, statements are
cancelled, time out and fail behind a SET. Not here: any other state (`test_no_leak.py`).
`PYPROXY_SEED` replays the choices of each client. Next on the path: `test_tagged_rows.py`.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.fix_postgres import Postgres
from tests.fix_proxy import Proxy
from tests.postgres.load import scale, seed
from tests.wire import (
    Message,
    SilenceError,
    Wire,
    WireError,
    batch,
    bind,
    execute,
    parse,
    query,
    row,
    send_cancel,
    sync,
)

Maker = Callable[..., Proxy]
TENANTS = 6
TURNS = 3_000
DATABASE = "tenants"
SCHEMA = f"""
CREATE TABLE ledger (tenant text);
INSERT INTO ledger SELECT 't' || n % {TENANTS} FROM generate_series(1, {TENANTS * 3}) n;
ALTER TABLE ledger ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON ledger USING (tenant = current_setting('app.tenant_id', true));
GRANT SELECT ON ledger TO guest
"""
LOOK = (
    "SELECT coalesce(current_setting('app.tenant_id', true), ''),"
    " (SELECT coalesce(string_agg(tenant, ','), '') FROM ledger)"
)
FAILS = "22012"
CALM = frozenset({"57014", FAILS, "25P02", "22023"})
KILLED = CALM | {"57P01", "57P02", "08006"}


class ForeignTenantError(AssertionError):
    """A value or a row of somebody else, or one that this client has not set."""


class EndedError(Exception):
    """A server was killed: this client begins anew."""


@dataclass
class Tenant:
    """One client: `held` is what its session's `app.tenant_id` must be."""

    front: Proxy
    number: int
    dice: random.Random
    forgiven: frozenset[str]
    wire: Wire | None = None
    held: str = ""
    at_start: str = ""
    looks: int = 0

    @property
    def name(self) -> str:
        """The tenant's own value."""
        return f"t{self.number}"

    def run(self, turns: int) -> int:
        """Do a number of random things and look after each; return how many looks were right."""
        for _ in range(turns):
            try:
                self.turn(self.wire or self.begin())
            except SilenceError as silence:
                raise ForeignTenantError(f"{self.name} hangs: {silence}") from silence
            except (EndedError, WireError, OSError):
                if self.forgiven == CALM:
                    raise
                self.leave()
        self.leave()
        return self.looks

    def begin(self) -> Wire:
        """Log in, with the tenant as an option or without."""
        self.at_start = self.dice.choice(("", self.name))
        self.held = self.at_start
        if self.at_start:
            options = f"-c app.tenant_id={self.name}"
            self.wire = self.front.wire("guest", DATABASE, options=options)
        else:
            self.wire = self.front.wire("guest", DATABASE)
        return self.wire

    def leave(self) -> None:
        """Leave, politely or not."""
        if self.wire is not None:
            self.dice.choice((self.wire.close, self.wire.reset))()
        self.wire = None

    def turn(self, wire: Wire) -> None:
        """Do one random thing, then look."""
        acts = (
            *(self.set_session, self.set_local, self.fail_in_one, self.fail_in_pipeline),
            *(self.fail_in_block, self.cancel, self.time_out, self.look, self.back),
        )
        self.dice.choice(acts)(wire)
        self.look(wire)
        if self.dice.random() < 0.12:
            self.leave()

    def set_session(self, wire: Wire) -> None:
        """Set the own value for the session, in one of three ways."""
        choice = self.dice.randrange(3)
        if choice == 0:
            wire.send(query(f"SET app.tenant_id = '{self.name}'"))
        elif choice == 1:
            wire.send(query(f"SELECT set_config('app.tenant_id', '{self.name}', false)"))
        else:
            values = [b"app.tenant_id", self.name.encode(), b"false"]
            wire.send(batch("SELECT set_config($1, $2, $3)", values))
        self.reply(wire)
        self.held = self.name

    def set_local(self, wire: Wire) -> None:
        """Set the own value for a transaction, which ends in one of two ways."""
        self.ask(wire, "BEGIN")
        if self.dice.random() < 0.5:
            self.ask(wire, f"SET LOCAL app.tenant_id = '{self.name}'")
        else:
            wire.send(batch("SELECT set_config($1, $2, true)", [b"app.tenant_id", self.spelt]))
            self.reply(wire)
        self.look(wire, self.name)
        self.ask(wire, self.dice.choice(("COMMIT", "ROLLBACK")))

    @property
    def spelt(self) -> bytes:
        """The own value as a parameter."""
        return self.name.encode()

    @property
    def undone(self) -> str:
        """A value that no transaction ever commits."""
        return f"{self.name}-undone"

    def fail_in_one(self, wire: Wire) -> None:
        """Fail behind a SET in one text: the SET is undone."""
        self.ask(wire, f"SET app.tenant_id = '{self.undone}'; SELECT 1/0", FAILS)

    def fail_in_pipeline(self, wire: Wire) -> None:
        """Fail behind a SET in one batch: the SET is undone."""
        first = parse("", f"SET app.tenant_id = '{self.undone}'") + bind() + execute()
        wire.send(first, parse("", "SELECT 1/0"), bind(), execute(), sync())
        self.reply(wire, FAILS)

    def fail_in_block(self, wire: Wire) -> None:
        """Fail a SET in a transaction behind another one."""
        self.ask(wire, "BEGIN")
        self.ask(wire, f"SET app.tenant_id = '{self.undone}'")
        self.look(wire, self.undone)
        self.ask(wire, "SET work_mem = 'much'", "22023")
        self.ask(wire, self.dice.choice(("ROLLBACK", "COMMIT")))

    def cancel(self, wire: Wire) -> None:
        """Cancel something, early or late."""
        wire.send(query(f"SELECT pg_sleep({self.dice.random() * 0.01})"))
        send_cancel(self.front.host, self.front.port, wire.pid, wire.secret)
        self.reply(wire, "57014", or_none=True)

    def time_out(self, wire: Wire) -> None:
        """Let a statement run into its limit behind a SET."""
        # The limit comes last: it would strike what follows in the same text on a busy machine.
        sets = f"SET app.tenant_id = '{self.undone}'; SET LOCAL statement_timeout = '1ms'"
        self.ask(wire, f"BEGIN; {sets}")
        self.ask(wire, "SELECT pg_sleep(10)", "57014")
        self.ask(wire, "ROLLBACK")

    def back(self, wire: Wire) -> None:
        """Go back to what the session began with."""
        self.ask(wire, self.dice.choice(("RESET app.tenant_id", "RESET ALL", "DISCARD ALL")))
        self.held = self.at_start

    def look(self, wire: Wire, want: str | None = None) -> None:
        """Read the value and the rows, which must be the own ones."""
        want = self.held if want is None else want
        wire.send(self.dice.choice((query, batch))(LOOK))
        rows = [row(got) for got in self.reply(wire) if got.tag == "D"]
        own = ",".join([want] * 3) if want == self.name else ""
        if rows != [[want.encode(), own.encode()]]:
            raise ForeignTenantError(f"{self.name} wants {want!r} and got {rows}")
        self.looks += 1

    def ask(self, wire: Wire, sql: str, fails: str = "") -> None:
        """Run a simple query that succeeds, or fails as it should."""
        wire.send(query(sql))
        self.reply(wire, fails)

    def reply(self, wire: Wire, fails: str = "", or_none: bool = False) -> list[Message]:
        """Read one reply with exactly this error (`or_none`: or without)."""
        seen = wire.until("Z")
        codes = {got.fields()["C"] for got in seen if got.tag == "E"}
        if codes != ({fails} if fails else set()) and not (or_none and not codes):
            if codes <= self.forgiven - CALM:
                raise EndedError
            raise ForeignTenantError(f"{self.name} wants {fails or 'no error'} and got {codes}")
        return seen


def killer(server: Postgres, stop: threading.Event, dice: random.Random) -> int:
    """End a random server process of the tenants now and then; return how many."""
    ended = 0
    while not stop.wait(0.02 + dice.random() * 0.1):
        pids = [pid for pid, _, _ in server.backends(f"datname = '{DATABASE}'")]
        if pids:
            server.sql("SELECT pg_terminate_backend(%s)", dice.choice(pids))
            ended += 1
    return ended


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [False, True], ids=["calm", "kills"])
@pytest.mark.parametrize(("budget", "workers"), [(1, 1), (2, 1), (3, 2)])
def test_no_tenant_ever_sees_another(
    budget: int, workers: int, kills: bool, postgres: Postgres, proxy: Maker
) -> None:
    """The value of `app.tenant_id` and the rows that it shows are the client's own, always."""
    postgres.sql(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
    postgres.sql(f"CREATE DATABASE {DATABASE}")
    connection = postgres.connect(database=DATABASE)
    connection.cursor().execute(SCHEMA)
    connection.close()
    front = proxy(postgres, workers=workers, pool={"max_connections": budget})
    start, stop, turns = seed(), threading.Event(), max(1, int(TURNS * scale()))
    forgiven = KILLED if kills else CALM
    with ThreadPoolExecutor(TENANTS + 1) as pool:
        ending = pool.submit(killer, postgres, stop, random.Random(start)) if kills else None
        try:
            tenants = [Tenant(front, n, random.Random(start + n), forgiven) for n in range(TENANTS)]
            running = [pool.submit(each.run, turns) for each in tenants]
            looks = [done.result() for done in running]
        finally:
            stop.set()
    assert sum(looks) > TENANTS * turns * (0.3 if kills else 1)
    assert ending is None or ending.result() > 0
