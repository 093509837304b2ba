"""The state walk: what some clients do in one sequence, made from a seed.

A sequence has two to four clients with one or two lives each (log in, some steps, leave); a step is
a statement or a small batch, by the simple or the extended protocol. The walker is told the
transaction status after each of its steps, so that it begins and ends transactions as
applications do. It sends nothing itself. Next on the path: `stateroom.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tests.postgres.statewords import CUSTOM, WEIGHTS, Statement, Word, Words
from tests.wire import bind, close, describe, execute, parse, query, startup, sync

# Start-up packets; the first is the commonest, so that clients share servers.
LOGINS: Sequence[tuple[int, dict[str, str]]] = (
    (10, {"user": "postgres"}),
    (3, {"user": "postgres", "application_name": "named at start"}),
    (2, {"user": "postgres", "options": "-c app.tenant_id=start -c work_mem=7MB"}),
    (1, {"user": "postgres", "options": "-c search_path=tenant", "TimeZone": "Europe/Rome"}),
    (1, {"user": "postgres", "DateStyle": "German", "client_encoding": "LATIN1"}),
    (2, {"user": "guest"}),
    (1, {"user": "guest", "options": "-c work_mem=9MB --app.color=mine"}),
)
# The first slot of those who look at the servers after all others have gone.
AUDITOR = 4
# plpgsql's settings appear once anybody on that server process has run a function in it.
NOT_LOOKED_AT = "name NOT LIKE 'plpgsql.%'"
# A custom name that was once used on a server reads '' there ever after, and NULL elsewhere.
_CUSTOM = ", ".join(
    f"coalesce(nullif(current_setting('{name}', true), ''), 'none')" for name in CUSTOM
)
_BRIEF = (
    f"current_user, session_user, current_setting('role'), {_CUSTOM},"
    " current_setting('search_path'), current_setting('application_name'),"
    " (SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_catalog.pg_class WHERE relnamespace"
    " = pg_my_temp_schema()),"
    " (SELECT string_agg(concat(classid, '/', objid, ' ', mode), ',' ORDER BY classid, objid, mode)"
    " FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),"
    " (SELECT string_agg(c, ',' ORDER BY c) FROM pg_listening_channels() c),"
    " (SELECT string_agg(concat(name, ' ', is_holdable), ',' ORDER BY name) FROM"
    " pg_catalog.pg_cursors)"
)
_SETTINGS = (
    "(SELECT string_agg(concat(name, '=', setting), chr(10) ORDER BY name) FROM"
    f" pg_catalog.pg_settings WHERE {NOT_LOOKED_AT})"
)
LOOK = f"SELECT {_BRIEF}"
FULL_LOOK = f"SELECT {_BRIEF}, {_SETTINGS}"


@dataclass(frozen=True)
class Op:
    """One thing that one client does: log in, send bytes and read `replies` ReadyForQuery, leave.

    `title` says it in words; `kinds` name the places in the vocabulary.
    """

    slot: int
    what: Literal["login", "ask", "leave"]
    title: str
    data: bytes = b""
    replies: int = 1
    kinds: tuple[str, ...] = ()


def login(slot: int, database: str, parameters: dict[str, str]) -> Op:
    """Return the op that opens a connection and logs in."""
    return Op(slot, "login", f"log in {parameters}", startup(parameters | {"database": database}))


def look(slot: int, sql: str = FULL_LOOK) -> Op:
    """Return the op that looks at the session."""
    name = "full look" if sql == FULL_LOOK else "look"
    return Op(slot, "ask", name, query(sql), 1, (name,))


@dataclass(frozen=True)
class Plan:
    """Who takes part: per client, the number of steps of each life; `named`: see Words.

    `words` is the part of the vocabulary that is spoken. Mostly it is small: where anything may
    happen, nearly everybody is pinned for one thing soon, and that hides what the others leave.
    """

    lives: tuple[tuple[int, ...], ...]
    named: bool
    words: Sequence[tuple[int, Word]]

    @classmethod
    def roll(cls, dice: random.Random) -> Plan:
        """Return a plan of some twenty steps."""
        clients = dice.choice((2, 2, 2, 3, 3, 3, 4))
        count = max(4, 18 // clients)
        lives = tuple(
            tuple(dice.randrange(2, count + 2) for _ in range(dice.choice((1, 1, 2))))
            for _ in range(clients)
        )
        named = dice.random() < 0.4
        if dice.random() < 0.2:
            return cls(lives, named, WEIGHTS)
        few = dice.choices(WEIGHTS, [weight for weight, _ in WEIGHTS], k=dice.randrange(1, 5))
        return cls(lives, named, (*few, (4, Words.read)))

    def login(self, dice: random.Random) -> dict[str, str]:
        """Return the start-up parameters of one life."""
        fitting = [each for each in LOGINS if self.named or "application_name" not in each[1]]
        (chosen,) = dice.choices(fitting, [weight for weight, _ in fitting])
        return chosen[1]


class Walker:
    """One life of one client: gives its steps one by one.

    `status` is the transaction status after the last step (`I`, `T` or `E`); the runner keeps it.
    """

    def __init__(
        self, dice: random.Random, plan: Plan, slot: int, life: int, sequence: int
    ) -> None:
        """Take client `slot` (0 to 3) in its `life` (0 to 9) of a numbered sequence."""
        self.dice = dice
        self.slot = slot
        self.plan = plan
        self.words = Words(dice, slot, life, sequence, plan.named)
        self.status = "I"
        self.seeded = False
        self.seeding = False

    def step(self) -> Op:
        """Return the next step."""
        self.seeding = False
        choice = self.dice.random()
        if choice < 0.07:
            return self.looking()
        if choice < 0.09:
            return self.closing()
        if choice < (0.25 if self.seeded else 0.1) and self.status != "E":
            return self.chance()
        count = 1 if self.dice.random() < 0.75 else self.dice.randrange(2, 5)
        statements = [self.statement() for _ in range(count)]
        return self.packed(statements)

    def learn(self, status: str, failed: bool) -> None:
        """Take in how the last step ended on a direct connection."""
        self.status = status
        self.seeded = self.seeded or (self.seeding and not failed)

    def statement(self) -> Statement:
        """Return a statement that suits the transaction's status."""
        words, choice = self.words, self.dice.random()
        limits = {"I": (0.02, 0.04, 0.05, 0.3), "T": (0.2, 0.28, 0.42, 0.43)}
        commit, rollback, savepoint, begin = limits.get(self.status, (0.15, 0.4, 0.7, 0.71))
        if choice < commit:
            return words.commit()
        if choice < rollback:
            return words.rollback()
        if choice < savepoint:
            return words.savepoint()
        if choice < begin:
            return words.begin()
        weights = [weight for weight, _ in self.plan.words]
        (chosen,) = self.dice.choices(self.plan.words, weights)
        return chosen[1](words)

    def looking(self) -> Op:
        """Look at the session, by either protocol."""
        if self.dice.random() < 0.5:
            return look(self.slot, LOOK)
        data = parse("", LOOK) + bind() + execute() + sync()
        return Op(self.slot, "ask", "look, extended", data, 1, ("look",))

    def chance(self) -> Op:
        """Seed the session's random generator, or draw from it once it is seeded."""
        self.seeding = not self.seeded or self.dice.random() < 0.2
        seed = self.dice.randrange(1, 99)
        kind, sql = "random", "SELECT random(), random()"
        if self.seeding:
            kind, sql = "seed", f"SELECT setseed(0.{seed})"
        return Op(self.slot, "ask", sql, query(sql), 1, (kind,))

    def closing(self) -> Op:
        """Close a prepared statement, which may not exist."""
        name = self.words.one("s0", "s1")
        return Op(self.slot, "ask", f"Close {name}", close("S", name) + sync(), 1, ("close",))

    def packed(self, statements: list[Statement]) -> Op:
        """Return a step that sends these statements in one write."""
        kinds = tuple(each.kind for each in statements)
        simple = not any(each.values for each in statements) and self.dice.random() < 0.6
        if simple and self.dice.random() < 0.6:
            text = "; ".join(each.sql for each in statements)
            return Op(self.slot, "ask", f"Query {text}", query(text), 1, kinds)
        if simple:
            title = "Query " + " | Query ".join(each.sql for each in statements)
            data = b"".join(query(each.sql) for each in statements)
            return Op(self.slot, "ask", title, data, len(statements), kinds)
        each_synced = self.dice.random() < 0.5
        data, titles = b"", []
        for each in statements:
            part, title = self.extended(each)
            data += part + (sync() if each_synced else b"")
            titles.append(title + (" Sync" if each_synced else ""))
        if each_synced:
            return Op(self.slot, "ask", " ".join(titles), data, len(statements), kinds)
        return Op(self.slot, "ask", " ".join(titles) + " Sync", data + sync(), 1, kinds)

    def extended(self, given: Statement) -> tuple[bytes, str]:
        """Return Parse, Bind and Execute of a statement, or of one that has been parsed before."""
        choice = self.dice.random()
        if given.kind in {"commit", "rollback", "savepoint"}:
            # In a failed transaction the proxy says 25P02 where the server says 42P05, if the name
            # was prepared on another server: a new one only behind a Close, then.
            choice *= 0.7
        name = "" if choice < 0.6 else self.words.one("s0", "s1")
        ask = describe("P") if self.dice.random() < 0.7 else b""
        run = bind("", name, given.values) + ask + execute()
        shown = f" {given.values}" if given.values else ""
        if choice > 0.85:
            return run, f"Bind+Execute {name}{shown}"
        if 0.6 <= choice < 0.7:
            again = close("S", name) + parse(name, given.sql) + run
            return again, f"Close+Parse {name} {given.sql}{shown} Bind+Execute"
        return parse(name, given.sql) + run, f"Parse {name} {given.sql}{shown} Bind+Execute"


def auditors(servers: int, database: str) -> list[Op]:
    """Return ops of new clients that hold all servers of the commonest login and look at each."""
    ops: list[Op] = []
    for slot in range(AUDITOR, AUDITOR + servers):
        begin = Op(slot, "ask", "Query BEGIN", query("BEGIN"))
        ops += [login(slot, database, LOGINS[0][1]), begin, look(slot)]
    return ops


def interleaved(dice: random.Random, lengths: list[int]) -> list[int]:
    """Return an order in which clients with so many ops each take turns, some for a while."""
    left = list(lengths)
    order: list[int] = []
    while any(left):
        slot = dice.choice([n for n, count in enumerate(left) if count])
        for _ in range(min(left[slot], 1 if dice.random() < 0.6 else dice.randrange(2, 5))):
            order.append(slot)
            left[slot] -= 1
    return order
