"""Rooms in which sequences of the state walk run: first directly, then through a proxy.

A room has a proxy and two databases of the same content. Each client of a sequence runs alone on a
direct connection in the first; then all of them run in turn, some at the same time, through the
proxy in the second, and every answer must be the same. Who gets no server yet (others are pinned)
waits while the others go on, so that a sequence needs no plan of who may pin. A sequence that
fails is made as small as still fails. Next on the path: `test_no_leak.py`.
"""

from __future__ import annotations

import contextlib
import random
import re
import select
import time
from dataclasses import dataclass, field

from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.postgres.statewalk import (
    AUDITOR,
    Op,
    Plan,
    Walker,
    auditors,
    interleaved,
    login,
    look,
)
from tests.postgres.statewords import ROLE_DEFAULTS, ROLES, SCHEMA_SQL
from tests.wire import Message, Wire, row, split

# How long the runner looks for an answer before it lets another client go on. Only the order of
# what happens depends on it, never what must come out.
PATIENCE_S = 0.004
# How often, and how long each time, an answer is looked for where all wait; beyond, the proxy
# hangs. A machine that stands still for a while spends only one of the looks.
STALL_LOOKS = 30
STALL_S = 1.0
# How long one send, or one answer of a direct connection, may take.
DIRECT_S = 300.0
SHRINK_S = 60.0
TRIES = 5
# A server names a statement of the protocol as the proxy called it there.
STATEMENT_NAME = re.compile(r'prepared statement "(?:s\d|_pyproxy_\w+)"')
# A process keeps its schema of temporary objects, emptied, once it has had one.
NO_TEMP_SCHEMA = 'schema "pg_temp" does not exist'
NO_TEMP_FUNCTION = ("42883", "function pg_temp.mem() does not exist")
END = Message("end of stream", b"")

Answer = tuple[object, ...]


@dataclass
class Seat:
    """One client's connection and what it has been told."""

    wire: Wire
    parameters: dict[bytes, bytes] = field(default_factory=dict)
    got: list[Message] = field(default_factory=list)
    owed: int = 0

    @classmethod
    def open(cls, host: str, port: int) -> Seat:
        """Connect and send nothing."""
        return cls(Wire.open(host, port, DIRECT_S))

    def ask(self, op: Op) -> None:
        """Send an op's bytes; its answer is owed."""
        self.got, self.owed = [], op.replies
        try:
            self.wire.send(op.data)
        except ConnectionError:
            self.got, self.owed = [END], 0

    def receive(self) -> bool:
        """Take in what has arrived; return whether the answer is complete."""
        buffer = self.wire.buffer
        if not self.wire.fill():
            self.got.append(END)
            self.owed = 0
            return True
        taken, rest = split(bytes(buffer))
        buffer[:] = rest
        self.got += taken
        self.owed -= sum(each.tag == "Z" for each in taken)
        return self.owed <= 0

    def answer(self) -> Answer:
        """Return the answer in the form that is compared, with all parameters told so far."""
        seen: list[tuple[object, ...]] = []
        for each in self.got:
            if each.tag == "S":
                name, value = each.body.split(b"\0")[:2]
                self.parameters[name] = value
            else:
                seen.append(plain(each))
        return (*seen, tuple(sorted(self.parameters.items())))


def plain(got: Message) -> tuple[object, ...]:
    """Return a message without what differs between any two connections (pids, keys, OIDs)."""
    if got.tag in "EN":
        fields = got.fields()
        if fields["M"] == NO_TEMP_SCHEMA:
            return got.tag, fields["S"], *NO_TEMP_FUNCTION
        return got.tag, fields["S"], fields["C"], STATEMENT_NAME.sub("statement", fields["M"])
    if got.tag == "K":
        return (got.tag,)
    if got.tag == "A":
        return got.tag, got.body[4:]
    if got.tag == "T":
        return got.tag, columns(got.body)
    return got.tag, got.body


def columns(body: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return names and types of a RowDescription; the OIDs of tables are those of one database."""
    found, at = [], 2
    while at < len(body):
        end = body.index(0, at)
        found.append((body[at:end], body[end + 7 : end + 19]))
        at = end + 19
    return tuple(found)


@dataclass
class Sequence:
    """What happens, in the order wished for, with each op's answer on a direct connection."""

    seed: int
    ops: list[Op]
    answers: list[Answer]


@dataclass
class Fault:
    """The first answer that was not the direct one."""

    sequence: Sequence
    index: int
    got: Answer
    done: list[int]

    def told(self) -> str:
        """Return the report: what was done in which order, what came and what should have."""
        ops, wanted = self.sequence.ops, self.sequence.answers[self.index]
        order = [f"  client {ops[n].slot}: {ops[n].title[:300]}" for n in self.done]
        differing = [
            line
            for want, came in zip(padded(wanted, self.got), padded(self.got, wanted), strict=True)
            if want != came
            for line in compared(want, came)
        ]
        return "\n".join(
            [
                f"client {ops[self.index].slot} at {ops[self.index].title[:300]!r}:",
                *differing,
                f"what was sent, in order ({len(order)} ops):",
                *order,
            ]
        )


def padded(one: Answer, other: Answer) -> list[object]:
    """Return an answer as long as the longer of both; the parameters stay last."""
    return [*one[:-1], *[None] * (len(other) - len(one)), one[-1]]


def compared(want: object, came: object) -> list[str]:
    """Return two lines on a part of an answer, without what is equal in long ones."""
    wanted, given = cells(want), cells(came)
    if len(wanted) == len(given) > 1:
        pairs = [(w, g) for w, g in zip(wanted, given, strict=True) if w != g]
        wanted, given = [w for w, _ in pairs], [g for _, g in pairs]
    return [f"  expected {wanted}"[:2000], f"  got      {given}"[:2000]]


def cells(part: object) -> list[object]:
    """Return the values and lines of a row, the single parameters, or the part itself."""
    if not isinstance(part, tuple) or not part:
        return [part]
    if part[0] == "D":
        values = row(Message("D", part[1]))
        return [line for value in values for line in (value or b"NULL").split(b"\n")]
    return list(part)


class Room:
    """A proxy with two databases; one sequence runs at a time."""

    def __init__(self, server: Postgres, front: Proxy, name: str, servers: int) -> None:
        """Make the databases `name`_alone and `name`_shared; the proxy has `servers` servers."""
        self.server = server
        self.front = front
        self.servers = servers
        self.alone = f"{name}_alone"
        self.shared = f"{name}_shared"
        self.fresh: list[Answer] = []
        self.steps = 0
        self.waits = 0
        self.kinds: dict[str, int] = {}
        for database in (self.alone, self.shared):
            self.prepare(database)
        self.admin = [self.opened(self.alone), self.opened(self.shared)]
        self.warm()

    def prepare(self, database: str) -> None:
        """Make one database and fill it."""
        have = {name for (name,) in self.server.sql("SELECT rolname FROM pg_roles")}
        for role in set(ROLES) - have:
            self.server.sql(f'CREATE ROLE "{role}"')
        self.server.sql(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        self.server.sql(f"CREATE DATABASE {database} TEMPLATE template0")
        for default in ROLE_DEFAULTS:
            self.server.sql(f"ALTER ROLE guest IN DATABASE {database} SET {default}")
        with contextlib.closing(self.server.connect(database=database)) as connection:
            connection.cursor().execute("; ".join(SCHEMA_SQL))

    def opened(self, database: str) -> Wire:
        """Return a direct connection of the administrator."""
        return Wire.login(self.server.host, self.server.port, database=database)

    def close(self) -> None:
        """Close what the room keeps open."""
        for wire in self.admin:
            wire.close()

    # A sequence, made and run directly

    def make(self, seed: int) -> Sequence:
        """Return the sequence of a seed, each client run alone on direct connections."""
        dice = random.Random(seed)
        plan = Plan.roll(dice)
        self.rewind(self.admin[0])
        by_slot = [self.walk(dice, plan, slot, seed) for slot in range(len(plan.lives))]
        order = interleaved(dice, [len(done) for done in by_slot])
        walked = [by_slot[slot].pop(0) for slot in order]
        audit = auditors(self.servers, self.alone)
        if not self.fresh:
            self.fresh = self.direct(audit[:3])
        walked += [(op, self.fresh[n % 3]) for n, op in enumerate(audit)]
        return Sequence(seed, [op for op, _ in walked], [answer for _, answer in walked])

    def walk(
        self, dice: random.Random, plan: Plan, slot: int, seed: int
    ) -> list[tuple[Op, Answer]]:
        """Walk the lives of one client; return its ops with their answers."""
        done: list[tuple[Op, Answer]] = []
        for life, steps in enumerate(plan.lives[slot]):
            walker = Walker(dice, plan, slot, life, seed)
            alone = Alone(self.server)
            done.append(alone.run(login(slot, self.alone, plan.login(dice))))
            for n in range(steps):
                op = look(slot) if n == 0 and dice.random() < 0.3 else walker.step()
                done.append(alone.run(op))
                walker.learn(alone.status(), alone.failed())
            done.append(alone.run(look(slot)))
            leave = dice.choice(("terminate", "terminate", "vanish"))
            done.append(alone.run(Op(slot, "leave", leave)))
        return done

    def rewind(self, admin: Wire) -> None:
        """Set the sequences back to their start."""
        admin.ask("; ".join(f"SELECT setval('seq_c{slot}', 1, false)" for slot in range(4)))

    def again(self, sequence: Sequence, keep: list[int]) -> Sequence | None:
        """Return a part of a sequence with its own direct answers; None if they vary."""
        ops = [sequence.ops[n] for n in keep]
        first, second = self.direct(ops), self.direct(ops)
        return Sequence(sequence.seed, ops, first) if first == second else None

    def direct(self, ops: list[Op]) -> list[Answer]:
        """Run ops directly, each client alone; return the answers."""
        self.rewind(self.admin[0])
        answers: dict[int, Answer] = {}
        for slot in {op.slot for op in ops}:
            alone = Alone(self.server)
            for n, op in enumerate(ops):
                if op.slot == slot:
                    answers[n] = alone.run(op)[1]
            alone.run(Op(slot, "leave", "vanish"))
        return [answers[n] for n in range(len(ops))]

    # The same through the proxy

    def run(self, sequence: Sequence) -> Fault | None:
        """Run a sequence through the proxy; return the first difference."""
        self.rewind(self.admin[1])
        fault, waits = self.together(sequence)
        self.waits += waits
        self.steps += len(sequence.ops)
        for op in sequence.ops:
            for kind in op.kinds:
                self.kinds[kind] = self.kinds.get(kind, 0) + 1
        return fault

    def together(self, sequence: Sequence) -> tuple[Fault | None, int]:
        """Run all clients of a sequence; return the first difference, and how often one waited."""
        together = Together(self, sequence)
        try:
            return together.run(), together.waits
        finally:
            together.leave()

    def clean(self) -> None:
        """End all servers of the proxy, so that nothing of before is left."""
        where = f"datname = '{self.shared}' AND pid <> {self.admin[1].pid}"
        self.server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {where}")
        wait_until(lambda: not self.front.table("servers"), "the proxy has no server any more")
        self.warm()

    def warm(self) -> None:
        """Let the proxy open its servers: every sequence ends, and so begins, with all of them."""
        ops = auditors(self.servers, self.alone)
        fault = self.together(Sequence(0, ops, self.direct(ops)))[0]
        if fault is not None:
            raise AssertionError(f"a server that was just opened is not clean\n{fault.told()}")

    # A smaller one that fails as well

    def shrink(self, fault: Fault) -> tuple[Fault, bool]:
        """Return a smaller sequence that fails, and whether the first one fails by itself."""
        deadline = time.monotonic() + SHRINK_S
        culprit = fault.sequence.ops[fault.index]
        everything = list(range(len(fault.sequence.ops)))
        # With several servers it depends on the moment which of them a client gets.
        tries = (self.tried(fault.sequence, everything) for _ in range(TRIES))
        best = next((found for found in tries if found is not None), None)
        if best is None:
            return fault, False
        size = max(1, len(best.sequence.ops) // 2)
        while True:
            removed = False
            at = 0
            while at < len(best.sequence.ops) and time.monotonic() < deadline:
                count = len(best.sequence.ops)
                keep = [n for n in range(count) if not at <= n < at + size]
                smaller = self.tried(best.sequence, keep) if keep else None
                if smaller is None or smaller.sequence.ops[smaller.index] != culprit:
                    at += size
                else:
                    best, removed = smaller, True
            if time.monotonic() > deadline or (size == 1 and not removed):
                return best, True
            size = max(1, size // 2)

    def tried(self, sequence: Sequence, keep: list[int]) -> Fault | None:
        """Run a part of a sequence on clean servers; return how it fails."""
        part = self.again(sequence, keep)
        if part is None:
            return None
        self.clean()
        return self.run(part)


class Alone:
    """One client on a direct connection."""

    def __init__(self, server: Postgres) -> None:
        """Connect with the first login."""
        self.server = server
        self.seat: Seat | None = None
        self.last: Answer = ()

    def run(self, op: Op) -> tuple[Op, Answer]:
        """Do one op; return it with its answer."""
        self.last = ()
        if op.what == "login":
            self.drop("vanish")
            self.seat = Seat.open(self.server.host, self.server.port)
        if op.what == "leave":
            self.drop(op.title)
        elif self.seat is not None:
            self.seat.ask(op)
            while self.seat.owed and not self.seat.receive():
                pass
            self.last = self.seat.answer()
        return op, self.last

    def drop(self, how: str) -> None:
        """Leave, if connected."""
        if self.seat is not None:
            drop(self.seat, how)
        self.seat = None

    def status(self) -> str:
        """Return the transaction status after the last op."""
        ends = [part[1] for part in self.parts() if part[0] == "Z"]
        return ends[-1].decode() if ends and isinstance(ends[-1], bytes) else "I"

    def failed(self) -> bool:
        """Return whether the last answer holds an error."""
        return any(part[0] == "E" for part in self.parts())

    def parts(self) -> list[tuple[object, ...]]:
        """Return the messages of the last answer."""
        return [part for part in self.last[:-1] if isinstance(part, tuple)]


def drop(seat: Seat, how: str) -> None:
    """Close a connection as `how` says."""
    if how == "terminate":
        seat.wire.close()
    else:
        with contextlib.suppress(OSError):
            seat.wire.reset()


class Together:
    """All clients of one sequence through the proxy."""

    def __init__(self, room: Room, sequence: Sequence) -> None:
        """Begin with nobody connected."""
        self.room = room
        self.sequence = sequence
        self.seats: dict[int, Seat] = {}
        self.waiting: dict[int, int] = {}
        self.done: list[int] = []
        self.waits = 0

    def run(self) -> Fault | None:
        """Do all ops; a client that waits is passed over until it is answered."""
        left = list(range(len(self.sequence.ops)))
        while left or self.waiting:
            self.see_off(left)
            ready = next((n for n in left if self.may_start(self.sequence.ops[n].slot)), None)
            if ready is not None:
                left.remove(ready)
                self.start(ready)
            fault = self.poll(must=ready is None)
            if fault is not None:
                return fault
        return None

    def may_start(self, slot: int) -> bool:
        """Return whether a client can do its next op: auditors come when all others have gone."""
        return slot not in self.waiting and (
            slot < AUDITOR or min(self.waiting, default=slot) >= AUDITOR
        )

    def see_off(self, left: list[int]) -> None:
        """Let clients go that have nothing left to do: others may wait for their servers.

        Auditors stay: the next one shall get another server.
        """
        stay = {self.sequence.ops[n].slot for n in left} | set(self.waiting)
        for slot in set(self.seats) - stay:
            if slot < AUDITOR:
                self.dismiss(slot, "terminate")

    def start(self, index: int) -> None:
        """Do one op, up to the sending of its bytes."""
        op = self.sequence.ops[index]
        self.done.append(index)
        if op.what == "login":
            self.dismiss(op.slot, "vanish")
            self.seats[op.slot] = Seat.open(self.room.front.host, self.room.front.port)
        if op.what == "leave":
            self.dismiss(op.slot, op.title)
        elif op.slot in self.seats:
            data = op.data.replace(self.room.alone.encode(), self.room.shared.encode())
            if op.what == "login":
                data = len(data).to_bytes(4, "big") + data[4:]
            self.seats[op.slot].ask(Op(op.slot, op.what, op.title, data, op.replies))
            self.waiting[op.slot] = index

    def poll(self, must: bool) -> Fault | None:
        """Take in answers; return the first difference.

        Without `must` it waits for the last op that was begun, and not long. With it all clients
        wait: the first answer ends that, and none in time is a difference.
        """
        last, looks = max(self.waiting.values(), default=-1), 0
        while self.waiting:
            seats = {self.seats[slot].wire.sock: slot for slot in self.waiting}
            readable = select.select(list(seats), [], [], STALL_S if must else PATIENCE_S)[0]
            for sock in readable:
                fault = self.judge(seats[sock]) if self.seats[seats[sock]].receive() else None
                if fault is not None:
                    return fault
            is_answered = len(self.waiting) < len(seats)
            if is_answered and (must or last not in self.waiting.values()):
                return None
            if not readable:
                looks += 1
                if must and looks == STALL_LOOKS:
                    return Fault(self.sequence, last, ("no answer", ()), self.done)
                if not must:
                    self.waits += 1
                    return None
        return None

    def judge(self, slot: int) -> Fault | None:
        """Compare a complete answer with the direct one."""
        index = self.waiting.pop(slot)
        seat = self.seats[slot]
        answer = seat.answer()
        if answer != self.sequence.answers[index]:
            return Fault(self.sequence, index, answer, list(self.done))
        return None

    def dismiss(self, slot: int, how: str) -> None:
        """End a client's connection, if it has one."""
        seat = self.seats.pop(slot, None)
        if seat is not None:
            drop(seat, how)

    def leave(self) -> None:
        """End all connections."""
        for slot in list(self.seats):
            self.dismiss(slot, "terminate")
