"""Byte scripts: what they are, how one is run, and how two runs are compared.

A script is data: steps of named clients that send bytes and read replies. It runs against a server
directly and through the proxy; both give a transcript, and the transcripts must be equal except for
what `permitted.toml` names. This file knows no script. Next on the path: `scripts_messages.py`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.wire import PROTOCOL_3_0, Message, Wire, message, split, startup

PERMITTED_FILE = Path(__file__).with_name("permitted.toml")
KINDS = ("backend-key", "order", "left-out", "error-fields", "text", "transcript")
LONG_BODY_BYTES = 4096


@dataclass(frozen=True)
class Open:
    """Open a connection without a login."""

    who: str = "a"


@dataclass(frozen=True)
class Login:
    """Open a connection and log in; the login's messages belong to the transcript."""

    who: str = "a"
    parameters: tuple[tuple[str, str], ...] = ()
    version: int = PROTOCOL_3_0


@dataclass(frozen=True)
class Send:
    """Send bytes in one write, or in pieces of `piece` bytes."""

    data: bytes
    who: str = "a"
    piece: int = 0


@dataclass(frozen=True)
class Until:
    """Read messages up to the `count`-th of a type."""

    tag: str = "Z"
    count: int = 1
    who: str = "a"


@dataclass(frozen=True)
class Exactly:
    """Read a number of raw bytes."""

    size: int
    who: str = "a"


@dataclass(frozen=True)
class HalfClose:
    """Send FIN and go on reading."""

    who: str = "a"


@dataclass(frozen=True)
class Rest:
    """Read to the end of the stream."""

    who: str = "a"


@dataclass(frozen=True)
class Direct:
    """Run SQL on a connection to the server itself; its rows belong to the transcript."""

    sql: str


Step = Open | Login | Send | Until | Exactly | HalfClose | Rest | Direct
Transcript = list[str]


@dataclass(frozen=True)
class Script:
    """A named exchange; the name starts with the number of the checklist (`T16 …`).

    `before` is SQL run directly before each run; `logged_in` logs client `a` in first, outside of
    the transcript.
    """

    name: str
    steps: tuple[Step, ...]
    before: str = ""
    logged_in: bool = True


def script(name: str, *steps: Step, before: str = "", logged_in: bool = True) -> Script:
    """Return a script; see Script."""
    return Script(name, steps, before, logged_in)


def show(got: Message) -> str:
    """Return a message as text; a long body as its length and hash."""
    if len(got.body) > LONG_BODY_BYTES:
        digest = hashlib.sha256(got.body).hexdigest()[:16]
        return f"{got.tag} {len(got.body)} bytes {digest}"
    return f"{got.tag} {got.body!r}"


@dataclass
class Run:
    """One run of one script; `rules` change messages before they are written down."""

    host: str
    port: int
    server: Any
    rules: Rules
    clients: dict[str, Wire] = field(default_factory=dict)
    transcript: Transcript = field(default_factory=list)

    def run(self, given: Script) -> Transcript:
        """Run a script and return its transcript."""
        if given.before:
            self.server.sql(given.before)
        try:
            if given.logged_in:
                self.clients["a"] = Wire.login(self.host, self.port)
            for step in given.steps:
                self.step(step)
        finally:
            for client in self.clients.values():
                client.close()
        return self.transcript

    def step(self, step: Step) -> None:
        """Carry out one step."""
        if isinstance(step, Direct):
            self.transcript.append(f"direct {self.server.sql(step.sql)}")
        elif isinstance(step, Open):
            self.clients[step.who] = Wire.open(self.host, self.port)
        elif isinstance(step, Login):
            client = self.clients[step.who] = Wire.open(self.host, self.port)
            parameters = {"user": "postgres", "database": "test"} | dict(step.parameters)
            client.send(startup(parameters, step.version))
            self.write(step.who, client.finish_login("postgres", None))
        else:
            self.exchange(step, self.clients[step.who])

    def exchange(self, step: Send | Until | Exactly | HalfClose | Rest, client: Wire) -> None:
        """Carry out a step on an open connection."""
        if isinstance(step, Send):
            size = step.piece or len(step.data) or 1
            for at in range(0, len(step.data), size):
                client.send(step.data[at : at + size])
        elif isinstance(step, Until):
            self.write(step.who, client.until(step.tag, step.count))
        elif isinstance(step, Exactly):
            self.transcript.append(f"{step.who}: {client.exactly(step.size)!r}")
        elif isinstance(step, HalfClose):
            client.half_close()
        else:
            whole, rest = split(client.rest())
            self.write(step.who, whole)
            self.transcript.append(f"{step.who}: {rest!r} end")

    def write(self, who: str, messages: Iterable[Message]) -> None:
        """Write messages down as the rules have them."""
        self.transcript += [f"{who}: {show(got)}" for got in self.rules.apply(messages)]


@dataclass(frozen=True)
class Difference:
    """One permitted difference, as `permitted.toml` has it."""

    name: str
    reason: str
    kind: str
    scripts: str
    versions: tuple[str, ...]
    values: dict[str, Any]

    def covers(self, given: Script, version: str) -> bool:
        """Return whether it is about this script on this server version."""
        return version in self.versions and any(
            fnmatch.fnmatchcase(given.name, pattern) for pattern in self.scripts.split("|")
        )


def permitted() -> list[Difference]:
    """Return the permitted differences."""
    with PERMITTED_FILE.open("rb") as file:
        tables = tomllib.load(file)["difference"]
    return [
        Difference(
            name=table.pop("name"),
            reason=table.pop("reason"),
            kind=table.pop("kind"),
            scripts=table.pop("scripts", "*"),
            versions=tuple(table.pop("versions", ("pg15", "pg18"))),
            values=table,
        )
        for table in tables
    ]


class Rules:
    """The permitted differences that cover one script on one server."""

    def __init__(self, differences: Iterable[Difference]) -> None:
        """Take the differences that apply."""
        self.differences = list(differences)

    @classmethod
    def covering(cls, given: Script, version: str) -> Rules:
        """Return the rules for a script on a server version."""
        return cls(d for d in permitted() if d.covers(given, version))

    def transcript(self) -> list[str] | None:
        """Return the transcript that the proxy is to give in place of the server's, if named."""
        for difference in self.differences:
            if difference.kind == "transcript":
                return list(difference.values["expected"])
        return None

    def apply(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages with all permitted differences taken out."""
        changed = list(messages)
        for difference in self.differences:
            if difference.kind == "order":
                changed = ordered(changed, difference.values["tag"])
            elif difference.kind == "left-out":
                changed = [got for got in changed if not left_out(got, difference)]
            elif difference.kind != "transcript":
                changed = [change(got, difference) for got in changed]
        return changed


def ordered(messages: list[Message], tag: str) -> list[Message]:
    """Return messages with each unbroken row of one type sorted."""
    done: list[Message] = []
    row: list[Message] = []
    for got in messages:
        if got.tag == tag:
            row.append(got)
            continue
        done += [*sorted(row), got]
        row = []
    return done + sorted(row)


def left_out(got: Message, difference: Difference) -> bool:
    """Return whether a message is one that only one of both sides sends."""
    values = difference.values
    if got.tag != values["tag"]:
        return False
    return "sqlstate" not in values or got.fields().get("C") == values["sqlstate"]


def change(got: Message, difference: Difference) -> Message:
    """Return one message with one permitted difference taken out."""
    values = difference.values
    if difference.kind == "backend-key" and got.tag == "K":
        return Message("K", b"." * len(got.body) if values["same_length"] else b".")
    if got.tag not in "EN" or difference.kind not in ("error-fields", "text"):
        return got
    fields = got.fields()
    if not re.fullmatch(values.get("sqlstate", ".*"), fields.get("C", "")):
        return got
    if difference.kind == "error-fields":
        kept = {k: v for k, v in fields.items() if k not in values["fields"]}
    else:
        new = re.sub(values["pattern"], values["replacement"], fields.get("M", ""))
        kept = fields | {"M": new}
    parts = [(k + v).encode(errors="surrogateescape") + b"\0" for k, v in kept.items()]
    body = b"".join(parts) + b"\0"
    return split(message(got.tag, body))[0][0]
