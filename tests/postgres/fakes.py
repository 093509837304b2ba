"""Servers that are not PostgreSQL: one that misbehaves on purpose, and a relay that can break.

Next on the path: `test_hostile.py`.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from tests.fix_proxy import Target
from tests.wire import Message, Wire, WireError, cstring, message

ROW = message(
    "T", struct.pack("!H", 1) + cstring("c") + struct.pack("!IHIhiH", 0, 0, 25, -1, -1, 0)
)
READY = message("Z", b"I")
AUTHENTICATED = message("R", struct.pack("!I", 0))
KEY = message("K", struct.pack("!II", 4711, 815))


def parameter(name: str, value: str) -> bytes:
    """Return a ParameterStatus."""
    return message("S", cstring(name) + cstring(value))


PARAMETERS = b"".join(
    parameter(name, value)
    for name, value in (
        ("server_version", "15.0"),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "off"),
    )
)
CANCEL_REQUEST = struct.pack("!I", 80877102)
GREETING = AUTHENTICATED + PARAMETERS + KEY + READY


def answer(text: str) -> bytes:
    """Return the answer to a query with one row of one text."""
    data = text.encode()
    row = message("D", struct.pack("!Hi", 1, len(data)) + data)
    return ROW + row + message("C", cstring("SELECT 1")) + READY


class Listener:
    """A TCP server on 127.0.0.1 with a thread for each connection."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        """Listen on a free port."""
        self.sock = socket.create_server((self.host, 0), backlog=256)
        self.port: int = self.sock.getsockname()[1]
        self.accepted = 0
        self.connections: list[socket.socket] = []
        self.threads: list[threading.Thread] = []
        self.closing = False

    def __enter__(self) -> Self:
        """Start to accept."""
        self._run(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close everything and wait for the threads."""
        self.closing = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in list(self.threads):
            thread.join(10)
        self.sock.close()

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.closing:
            try:
                connection, _ = self.sock.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            self.connections.append(connection)
            self._run(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, WireError), connection:
            self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        """Talk on one connection until it is over."""
        raise NotImplementedError


class FakeServer(Listener):
    """Speaks just enough PostgreSQL, and sends `bad` in the place where it is told to.

    `greeting` is what follows the start-up; a Query with the text `bad` is answered with `bad`,
    then (if `hangs_up`) with a close; any other is answered with one row that repeats its text.
    """

    def __init__(
        self, *, greeting: bytes = GREETING, bad: bytes = b"", hangs_up: bool = True
    ) -> None:
        """Set what is sent when."""
        super().__init__()
        self.greeting, self.bad, self.hangs_up = greeting, bad, hangs_up

    def serve(self, connection: socket.socket) -> None:
        """Greet, then answer queries."""
        wire = Wire(connection, wait_s=60)
        size = struct.unpack("!I", wire.exactly(4))[0]
        if wire.exactly(size - 4).startswith(CANCEL_REQUEST):
            return  # as PostgreSQL does when it has sent the signal
        wire.send(self.greeting)
        while True:
            got = wire.message()
            if got.tag == "X" or not self.reply(wire, got):
                return

    def reply(self, wire: Wire, got: Message) -> bool:
        """Answer one message; return whether to go on."""
        if got.tag != "Q":
            return True
        text = got.body[:-1]
        if text == b"bad":
            wire.send(self.bad)
            return not self.hangs_up
        if text.upper().startswith(b"DISCARD"):
            wire.send(message("C", cstring("DISCARD ALL")), READY)
        else:
            wire.send(answer(text.decode()))
        return True


class Relay(Listener):
    """Copies bytes between clients and a server, and breaks when told to."""

    def __init__(self, target: Target) -> None:
        """Stand in front of `target`."""
        super().__init__()
        self.target = target
        self.refusing = False
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        self.stalled: set[int] = set()

    def serve(self, connection: socket.socket) -> None:
        """Copy both ways until one side ends."""
        if self.refusing:
            return
        with socket.create_connection((self.target.host, self.target.port)) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (connection, server)
            self.pairs.append(pair)
            try:
                while self._copy(pair):
                    pass
            finally:
                self.pairs.remove(pair)

    def _copy(self, pair: tuple[socket.socket, socket.socket]) -> bool:
        for ready in select.select(pair, [], [], 60)[0]:
            data = ready.recv(65_536)
            if not data:
                return False
            if id(pair) not in self.stalled:
                pair[ready is pair[0]].sendall(data)
        return True

    def reset(self) -> None:
        """End all connections with RST."""
        for client, server in list(self.pairs):
            with contextlib.suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            for sock in (server, client):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        """Swallow all bytes of the connections that are open now, as a lost network does."""
        self.stalled |= {id(pair) for pair in self.pairs}


def each_byte_flipped(data: bytes) -> Iterator[bytes]:
    """Yield the data with one byte changed, for each byte."""
    for at in range(len(data)):
        yield data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
