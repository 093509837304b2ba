"""A small raw client of PostgreSQL's wire protocol (v3) for tests.

It sends exactly the bytes that a test names and splits what comes back into messages; each call
that waits has a deadline. It is not a driver: no types, no conversion, no TLS. The message layouts
are those of the PostgreSQL manual, "Message Formats". Next on the path: `fix_postgres.py`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

PROTOCOL_3_0 = 0x30000
PROTOCOL_3_2 = 0x30002
SSL_REQUEST = struct.pack("!II", 8, 80877103)
GSSENC_REQUEST = struct.pack("!II", 8, 80877104)
WAIT_S = 20.0


class WireError(Exception):
    """The peer did not send what the protocol asks for, or not in time."""


class SilenceError(WireError):
    """The peer neither answered nor closed before the deadline."""


class Message(NamedTuple):
    """One message of the server: its type byte and what follows the length."""

    tag: str
    body: bytes

    def raw(self) -> bytes:
        """Return the message as it was on the wire."""
        return message(self.tag, self.body)

    def fields(self) -> dict[str, str]:
        """Return the fields of an ErrorResponse or NoticeResponse by their letter."""
        parts = self.body.split(b"\0")
        return {
            part[:1].decode("latin-1"): part[1:].decode(errors="surrogateescape")
            for part in parts
            if part
        }


def message(tag: str, body: bytes = b"") -> bytes:
    """Return a message with its type byte and length."""
    return tag.encode() + struct.pack("!I", len(body) + 4) + body


def cstring(text: str | bytes) -> bytes:
    """Return a NUL-terminated string."""
    return (text if isinstance(text, bytes) else text.encode()) + b"\0"


def startup(parameters: Mapping[str, str] | bytes, version: int = PROTOCOL_3_0) -> bytes:
    """Return a StartupMessage; `parameters` as bytes are put in as they are."""
    if isinstance(parameters, bytes):
        body = parameters
    else:
        body = b"".join(cstring(k) + cstring(v) for k, v in parameters.items()) + b"\0"
    return struct.pack("!II", len(body) + 8, version) + body


def cancel_request(pid: int, secret: bytes) -> bytes:
    """Return a CancelRequest."""
    return struct.pack("!III", len(secret) + 12, 80877102, pid) + secret


def query(sql: str | bytes) -> bytes:
    """Return a simple Query."""
    return message("Q", cstring(sql))


def parse(name: str, sql: str | bytes, oids: Iterable[int] = ()) -> bytes:
    """Return a Parse."""
    types = list(oids)
    tail = struct.pack(f"!H{len(types)}I", len(types), *types)
    return message("P", cstring(name) + cstring(sql) + tail)


def bind(portal: str = "", statement: str = "", values: Iterable[bytes | None] = ()) -> bytes:
    """Return a Bind with text parameters and text results."""
    given = list(values)
    body = cstring(portal) + cstring(statement) + struct.pack("!HH", 0, len(given))
    for value in given:
        body += struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value
    return message("B", body + struct.pack("!H", 0))


def describe(kind: str, name: str = "") -> bytes:
    """Return a Describe of a statement (`S`) or portal (`P`)."""
    return message("D", kind.encode() + cstring(name))


def execute(portal: str = "", max_rows: int = 0) -> bytes:
    """Return an Execute."""
    return message("E", cstring(portal) + struct.pack("!i", max_rows))


def close(kind: str, name: str = "") -> bytes:
    """Return a Close of a statement (`S`) or portal (`P`)."""
    return message("C", kind.encode() + cstring(name))


def sync() -> bytes:
    """Return a Sync."""
    return message("S")


def flush() -> bytes:
    """Return a Flush."""
    return message("H")


def terminate() -> bytes:
    """Return a Terminate."""
    return message("X")


def copy_data(data: bytes) -> bytes:
    """Return a CopyData."""
    return message("d", data)


def copy_done() -> bytes:
    """Return a CopyDone."""
    return message("c")


def copy_fail(reason: str) -> bytes:
    """Return a CopyFail."""
    return message("f", cstring(reason))


def function_call(oid: int, arguments: Iterable[bytes]) -> bytes:
    """Return a fastpath FunctionCall with binary arguments and a binary result."""
    given = list(arguments)
    body = struct.pack("!IHHH", oid, 1, 1, len(given))
    for value in given:
        body += struct.pack("!i", len(value)) + value
    return message("F", body + struct.pack("!H", 1))


def batch(
    sql: str,
    values: Iterable[bytes | None] = (),
    *,
    name: str = "",
    end: bytes | None = None,
) -> bytes:
    """Return Parse, Bind, Describe, Execute and Sync (or `end` in place of Sync)."""
    return (
        parse(name, sql)
        + bind("", name, values)
        + describe("P")
        + execute()
        + (sync() if end is None else end)
    )


def scram_final(password: str, first_bare: bytes, server_first: bytes) -> tuple[bytes, bytes]:
    """Return the client-final message and the server signature to expect (RFC 5802 §3)."""
    given = dict(part.split(b"=", 1) for part in server_first.split(b","))
    salted = hashlib.pbkdf2_hmac(
        "sha256", password.encode(), base64.b64decode(given[b"s"]), int(given[b"i"])
    )
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    without_proof = b"c=biws,r=" + given[b"r"]
    signed = first_bare + b"," + server_first + b"," + without_proof
    signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    final = without_proof + b",p=" + base64.b64encode(proof)
    return final, hmac.digest(server_key, signed, "sha256")


@dataclass
class Wire:
    """One connection: bytes out as given, messages in as they come.

    `wait_s` bounds each wait; a wait that passes it raises WireError.
    """

    sock: socket.socket
    wait_s: float = WAIT_S
    buffer: bytearray = field(default_factory=bytearray)
    parameters: dict[str, str] = field(default_factory=dict)
    pid: int = 0
    secret: bytes = b""
    scram_sent: tuple[bytes, bytes] = (b"", b"")

    @classmethod
    def open(cls, host: str, port: int, wait_s: float = WAIT_S) -> Self:
        """Open a TCP connection and send nothing."""
        sock = socket.create_connection((host, port), timeout=wait_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(sock, wait_s)

    @classmethod
    def login(
        cls,
        host: str,
        port: int,
        *,
        user: str = "postgres",
        database: str = "test",
        password: str | None = None,
        version: int = PROTOCOL_3_0,
        wait_s: float = WAIT_S,
        **parameters: str,
    ) -> Self:
        """Open a connection and log in; raise WireError with the server's message if refused."""
        wire = cls.open(host, port, wait_s)
        try:
            wire.send(startup({"user": user, "database": database, **parameters}, version))
            wire.finish_login(user, password)
        except BaseException:
            wire.sock.close()
            raise
        return wire

    def finish_login(self, user: str, password: str | None) -> list[Message]:
        """Answer what the server asks for until it is ready; return all its messages."""
        seen = []
        while True:
            got = self.message()
            seen.append(got)
            if got.tag == "E":
                raise WireError(f"login refused: {got.fields().get('C')} {got.fields().get('M')}")
            if got.tag == "R":
                self.answer(got.body, user, password)
            elif got.tag == "S":
                name, value = got.body.split(b"\0")[:2]
                self.parameters[name.decode()] = value.decode()
            elif got.tag == "K":
                self.pid = struct.unpack("!I", got.body[:4])[0]
                self.secret = got.body[4:]
            elif got.tag == "Z":
                return seen

    def answer(self, body: bytes, user: str, password: str | None) -> None:
        """Answer one authentication request."""
        kind = struct.unpack("!I", body[:4])[0]
        if kind == 0:
            return
        if password is None:
            raise WireError(f"the server asks for a password (kind {kind})")
        if kind == 3:
            self.send(message("p", cstring(password)))
        elif kind == 5:
            inner = hashlib.md5(f"{password}{user}".encode(), usedforsecurity=False)
            outer = hashlib.md5(inner.hexdigest().encode() + body[4:8], usedforsecurity=False)
            self.send(message("p", cstring("md5" + outer.hexdigest())))
        elif kind == 10:
            nonce = base64.b64encode(os.urandom(18))
            first = b"n,,n=,r=" + nonce
            self.scram_sent = (first[3:], b"")
            self.send(message("p", b"SCRAM-SHA-256\0" + struct.pack("!I", len(first)) + first))
        elif kind == 11:
            final, signature = scram_final(password, self.scram_sent[0], body[4:])
            self.scram_sent = (self.scram_sent[0], signature)
            self.send(message("p", final))
        elif kind == 12:
            if base64.b64decode(body[4:].removeprefix(b"v=")) != self.scram_sent[1]:
                raise WireError("the server's SCRAM signature is wrong")
        else:
            raise WireError(f"authentication request of kind {kind}")

    def send(self, *parts: bytes) -> None:
        """Send bytes, all of them, before the deadline."""
        self.sock.settimeout(self.wait_s)
        self.sock.sendall(b"".join(parts))

    def fill(self, wait_s: float | None = None) -> bool:
        """Receive once; return False at the end of the stream (a reset is one, too)."""
        self.sock.settimeout(self.wait_s if wait_s is None else max(wait_s, 0.001))
        try:
            data = self.sock.recv(1 << 20)
        except TimeoutError:
            raise SilenceError(f"no bytes in time; have {bytes(self.buffer[:200])!r}") from None
        except ConnectionError:
            return False
        self.buffer += data
        return bool(data)

    def exactly(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        deadline = time.monotonic() + self.wait_s
        while len(self.buffer) < size:
            if not self.fill(deadline - time.monotonic()):
                raise WireError(f"end of stream; have {bytes(self.buffer[:200])!r}")
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        return taken

    def message(self) -> Message:
        """Return the next message."""
        head = self.exactly(5)
        length = struct.unpack("!I", head[1:])[0]
        if length < 4:
            raise WireError(f"bad length in {head!r}")
        return Message(head[:1].decode("latin-1"), self.exactly(length - 4))

    def until(self, tag: str, count: int = 1) -> list[Message]:
        """Return messages up to and with the `count`-th of type `tag`."""
        seen: list[Message] = []
        while count:
            try:
                seen.append(self.message())
            except WireError as end:
                for got in seen:
                    if got.tag == "E":
                        end.add_note(f"the peer said before: {got.fields()}")
                raise
            count -= seen[-1].tag == tag
        return seen

    def ask(self, sql: str) -> list[Message]:
        """Run a simple query and return its messages."""
        self.send(query(sql))
        return self.until("Z")

    def value(self, sql: str) -> str | None:
        """Run a simple query and return its first column of its first row."""
        answer = self.ask(sql)
        for got in answer:
            if got.tag == "E":
                raise WireError(f"{got.fields().get('C')} {got.fields().get('M')}")
        rows = [row(got) for got in answer if got.tag == "D"]
        cell = rows[0][0] if rows else None
        return None if cell is None else cell.decode()

    def rest(self) -> bytes:
        """Return all bytes up to the end of the stream."""
        deadline = time.monotonic() + self.wait_s
        while self.fill(deadline - time.monotonic()):
            pass
        taken = bytes(self.buffer)
        self.buffer.clear()
        return taken

    def quiet(self, seconds: float) -> bool:
        """Return whether nothing arrives (and nothing is left over) for `seconds`."""
        return not self.buffer and not select.select([self.sock], [], [], seconds)[0]

    def half_close(self) -> None:
        """Send FIN and go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End with RST, as a process that was killed with data unread does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Say Terminate and close; a connection that is gone already is fine."""
        with contextlib.suppress(OSError):
            self.sock.sendall(terminate())
        self.sock.close()

    def __enter__(self) -> Self:
        """Return the connection itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()


def row(got: Message) -> list[bytes | None]:
    """Return the columns of a DataRow."""
    columns: list[bytes | None] = []
    at = 2
    for _ in range(struct.unpack("!H", got.body[:2])[0]):
        size = struct.unpack("!i", got.body[at : at + 4])[0]
        at += 4
        columns.append(None if size < 0 else got.body[at : at + size])
        at += max(size, 0)
    return columns


def split(data: bytes) -> tuple[list[Message], bytes]:
    """Split bytes into whole messages and a rest."""
    messages = []
    at = 0
    while len(data) - at >= 5:
        length = struct.unpack("!I", data[at + 1 : at + 5])[0]
        if length < 4 or len(data) - at < length + 1:
            break
        tag = data[at : at + 1].decode("latin-1")
        messages.append(Message(tag, data[at + 5 : at + 1 + length]))
        at += length + 1
    return messages, data[at:]


def tags(messages: Iterable[Message]) -> str:
    """Return the type bytes of messages in a row, for short comparisons."""
    return "".join(got.tag for got in messages)


def send_cancel(host: str, port: int, pid: int, secret: bytes) -> None:
    """Send a CancelRequest on a connection of its own and wait until the other side closes."""
    with socket.create_connection((host, port), timeout=WAIT_S) as sock:
        sock.sendall(cancel_request(pid, secret))
        sock.settimeout(WAIT_S)
        try:
            sock.recv(1)
        except ConnectionError:
            return
