"""Bad input from clients and from servers: an error and a close, and nobody else notices.

Each test also looks at the worker: the same process, memory flat, no processor time burnt.
Next on the path: `test_tagged_rows.py`.
"""

from __future__ import annotations

import contextlib
import random
import re
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.postgres.fakes import (
    AUTHENTICATED,
    KEY,
    PARAMETERS,
    READY,
    ROW,
    FakeServer,
    each_byte_flipped,
)
from tests.postgres.load import scale, seed
from tests.wire import Wire, WireError, batch, cstring, message, query, split, startup

Maker = Callable[..., Proxy]
MIB = 1 << 20
FEW_DESCRIPTORS = 220
"""Two for each worker that there may be, some of the service's own, and a few for clients."""
GUEST = ({"user": "guest", "scheme": "trust"},)
APP = ({"user": "app", "scheme": "file", "secret": "file:users.toml"},)


@contextmanager
def unharmed(front: Proxy, memory: int = 6 * MIB, cpu_s: float = 2.0) -> Iterator[None]:
    """Check that the worker is the same afterwards and has grown and worked only a little."""
    worker, before, used = front.worker, front.rss_bytes(), front.cpu_s()
    yield
    assert front.worker == worker
    assert front.cpu_s() - used < cpu_s
    assert front.rss_bytes() - before < memory


def error(fields: bytes) -> bytes:
    """Return an ErrorResponse of raw fields."""
    return message("E", fields + b"\0")


BAD_REPLIES = {
    "garbage": b"\xde\xad\xbe\xef" * 64,
    "an unknown type": message("!", b"what"),
    "a length of 0": b"D\0\0\0\0",
    "a length of 3": b"Z\0\0\0\3",
    "a negative length": b"D\xff\xff\xff\xff" + b"x" * 100,
    "the longest length, cut short": b"D\x7f\xff\xff\xff" + b"x" * 100,
    "a cut message": ROW[:9],
    "a row cut by the end": ROW + b"D\0\0\0\x20half",
    "nothing": b"",
    "an error without a code": error(b"SERROR\0Mno code\0") + READY,
    "an error without any field": error(b"") + READY,
    "an error without its last NUL": message("E", b"SERROR\0C42000") + READY,
    "an error with unknown fields": error(b"SERROR\0C42000\0Mtext\0?what\0\xffmore\0") + READY,
    "an error of 1 MiB": error(b"SERROR\0C42000\0M" + b"x" * MIB + b"\0") + READY,
    "a fatal error": error(b"SFATAL\0C57P01\0Mgone\0"),
    "an unknown ready status": message("Z", b"?"),
    "a ready without a status": message("Z", b""),
    "a ready with two": message("Z", b"II"),
    "two replies for one query": (ROW + message("C", cstring("SELECT 0")) + READY) * 2,
    "an authentication request": message("R", struct.pack("!I", 5) + b"salt"),
    "an unknown authentication": message("R", struct.pack("!I", 99)),
    "a key in the middle": KEY + READY,
    "a key that is too short": message("K", b"\0"),
    "a parameter without a NUL": message("S", b"name") + READY,
    "a parameter of 1 MiB": message("S", cstring("x") + b"y" * MIB + b"\0") + READY,
    "replication's copy": message("W", b"\0\0\0"),
    "a completion without text": message("C", b"") + READY,
    "a completion of 1 MiB": message("C", b"x" * MIB) + READY,
    "parse complete": message("1") + READY,
    "a negotiation": message("v", struct.pack("!II", 0, 0)) + READY,
}


@pytest.mark.parametrize("hangs_up", [True, False], ids=["closes", "stays"])
@pytest.mark.parametrize("name", BAD_REPLIES)
def test_t48_a_hostile_reply_ends_at_its_own_client(
    name: str, hangs_up: bool, proxy: Maker
) -> None:
    """The client gets whole messages and an end or a ReadyForQuery; others work on."""
    bad = BAD_REPLIES[name]
    with FakeServer(bad=bad, hangs_up=hangs_up) as server:
        front = proxy(server, auth=GUEST, pool={"max_connections": 2})
        with front.wire("guest") as other:
            assert other.value("before") == "before"
            with unharmed(front):
                client = front.wire("guest")
                client.wait_s = 10 if hangs_up else 1
                client.send(query("bad"))
                with contextlib.suppress(WireError):
                    client.until("Z")
                client.sock.close()
                if hangs_up:
                    # One that ends behind its ReadyForQuery takes the next query along until then.
                    wait_until(lambda: not front.table("servers"), "the server's end is seen")
                for _ in range(20):
                    assert other.value("after") == "after"
        front.stop()


def sasl(text: str) -> bytes:
    """Return an AuthenticationSASL that offers one mechanism."""
    return message("R", struct.pack("!I", 10) + cstring(text) + b"\0")


def sasl_continue(text: bytes) -> bytes:
    """Return an AuthenticationSASLContinue."""
    return message("R", struct.pack("!I", 11) + text)


SCRAM = sasl("SCRAM-SHA-256")
BAD_GREETINGS = {
    "garbage": b"\xca\xfe\xba\xbe" * 64,
    "nothing and a close": b"",
    "an unknown authentication": message("R", struct.pack("!I", 99)),
    "an authentication cut short": message("R", b"\0\0"),
    "an md5 request without a salt": message("R", struct.pack("!I", 5)),
    "an unknown mechanism": sasl("PLAIN-TEXT"),
    "no mechanism": message("R", struct.pack("!I", 10) + b"\0"),
    "a SCRAM nonce that is not ours": SCRAM + sasl_continue(b"r=short,s=c2FsdA==,i=4096"),
    "a SCRAM nonce of 1 MiB": SCRAM + sasl_continue(b"r=" + b"n" * MIB + b",s=c2FsdA==,i=4096"),
    "SCRAM with 2^31 rounds": SCRAM + sasl_continue(b"r=x,s=c2FsdA==,i=2147483648"),
    "SCRAM with 0 rounds": SCRAM + sasl_continue(b"r=x,s=c2FsdA==,i=0"),
    "SCRAM without attributes": SCRAM + sasl_continue(b""),
    "SCRAM that ends early": SCRAM + message("R", struct.pack("!I", 12) + b"v=AAAA"),
    "an error without a code": error(b"SFATAL\0Mno\0"),
    "an error of 1 MiB": error(b"SFATAL\0C28000\0M" + b"x" * MIB + b"\0"),
    "ready before anything": READY,
    "a row before ready": AUTHENTICATED + ROW,
    "the longest length": b"R\x7f\xff\xff\xff" + b"x" * 1000,
    "a length of 0": b"R\0\0\0\0",
    "an unknown ready status": AUTHENTICATED + PARAMETERS + KEY + message("Z", b"T"),
    "endless parameters": AUTHENTICATED + PARAMETERS * 2000,
}


@pytest.mark.parametrize("name", BAD_GREETINGS)
def test_t48_a_hostile_login_of_a_server_is_an_error_for_clients(name: str, proxy: Maker) -> None:
    """The client is told within the borrow timeout; the proxy does not hammer the server."""
    with FakeServer(greeting=BAD_GREETINGS[name], bad=b"") as server:
        pool = {"max_connections": 2, "connection_borrow_timeout": "1s", "connect_timeout": "1s"}
        front = proxy(server, auth=APP, pool=pool)
        with unharmed(front):
            assert re.search("refused|end of stream|08", front.refusal("app"))
            assert server.accepted < 40
        front.stop()


def test_t48_a_server_without_a_key_serves_and_cannot_be_cancelled(proxy: Maker) -> None:
    """BackendKeyData is not a must: some servers and proxies send none."""
    with FakeServer(greeting=AUTHENTICATED + PARAMETERS + READY) as server:
        front = proxy(server, auth=GUEST)
        with front.wire("guest") as client:
            assert client.value("works") == "works"
        front.stop()


def test_t44_bytes_of_an_idle_server_reach_nobody(proxy: Maker) -> None:
    """What a server sends behind its last ReadyForQuery is not the reply to the next query."""
    stray = ROW + message("C", cstring("SELECT 0")) + READY + ROW + READY
    with FakeServer(bad=stray, hangs_up=False) as server:
        front = proxy(server, auth=GUEST, pool={"max_connections": 1})
        for _ in range(5):
            client = front.wire("guest")
            client.send(query("bad"))
            with contextlib.suppress(WireError):
                client.until("Z")
            client.sock.close()
            with front.wire("guest") as other:
                assert other.value("mine") == "mine"
        front.stop()


def test_random_bytes_before_login_are_closed(postgres15: Postgres, proxy: Maker) -> None:
    """Garbage of any shape in place of a start-up costs nothing and is not an answer."""
    front = proxy(postgres15, login_timeout="5s")
    dice = random.Random(seed())
    good = startup({"user": "app", "database": "test"})
    flipped = list(each_byte_flipped(good))
    with front.wire() as other, unharmed(front):
        for _ in range(int(1000 * scale())):
            client = Wire.open(front.host, front.port)
            data = (
                dice.choice(flipped)
                if dice.random() < 0.5
                else dice.randbytes(dice.randrange(1, 600))
            )
            with contextlib.suppress(OSError):
                client.send(data)
                client.half_close()
            client.rest()
            client.sock.close()
        assert other.value("SELECT 1") == "1"


def test_random_bytes_after_login_are_an_error_or_a_close(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Garbage and damaged messages: the server connection is clean or closed, others work on."""
    front = proxy(postgres15, pool={"max_connections": 2})
    dice = random.Random(seed())
    good = batch("SELECT $1::text", [b"value"], name="s") + query("SELECT 1")
    flipped = list(each_byte_flipped(good))
    with front.wire() as other, unharmed(front):
        for _ in range(int(1000 * scale())):
            client = front.wire()
            data = (
                dice.choice(flipped)
                if dice.random() < 0.7
                else dice.randbytes(dice.randrange(1, 600))
            )
            with contextlib.suppress(OSError):
                client.send(data)
                client.half_close()
            messages, rest = split(client.rest())
            assert rest == b""
            assert set("".join(got.tag for got in messages)) <= set("123CDEGIKNSTZnst")
            client.sock.close()
            assert other.value("SELECT 'well'") == "well"
    wait_until(
        lambda: not postgres15.backends("usename = 'postgres' AND state LIKE 'idle in%'"),
        "no transaction is left open",
    )


def test_a_message_that_claims_gigabytes_allocates_nothing(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Heads with large lengths from fifty clients at a time, before and after login."""
    front = proxy(postgres15)
    with front.wire() as other, unharmed(front):
        clients = []
        for tag in b"QPBDECdpF" * 6:
            client = front.wire()
            client.send(bytes([tag]) + struct.pack("!I", 0x3FFFFFF0) + b"x" * 100)
            clients.append(client)
        for client in clients:
            client.reset()
        assert other.value("SELECT 1") == "1"


def test_half_open_connections_cost_little_and_end_with_the_login_timeout(
    postgres15: Postgres, proxy: Maker
) -> None:
    """T13 in small: silent connections neither spin nor keep others from logging in."""
    front = proxy(postgres15, login_timeout="3s")
    with unharmed(front, memory=4 * MIB):
        silent = [socket.create_connection((front.host, front.port)) for _ in range(500)]
        with front.wire() as other:
            assert other.value("SELECT 1") == "1"
        for sock in silent:
            sock.settimeout(15)
            while sock.recv(1000):
                pass
            sock.close()


def test_out_of_descriptors_pauses_accept_once_and_recovers(
    postgres15: Postgres, proxy: Maker
) -> None:
    """EMFILE: existing clients work, the log says it once, nothing spins, and it ends by itself.

    The limit is there from the start, as an operator's is: a kernel that accepts by itself goes by
    the limit of the time when it was told to.
    """
    low = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (FEW_DESCRIPTORS,) * 2)
    front = proxy(postgres15, pool={"max_connections": 2}, popen={"preexec_fn": low})
    with front.wire() as one, front.wire() as two:
        assert one.value("SELECT 1") == two.value("SELECT 1")
        before = front.cpu_s()
        crowd = [socket.create_connection((front.host, front.port)) for _ in range(FEW_DESCRIPTORS)]
        front.wait_log("accept")
        for _ in range(200):
            assert one.value("SELECT 1") == "1"
        assert two.quiet(2.0)
        assert front.cpu_s() - before < 0.5
        paused = [line for line in front.log().splitlines() if "accept" in line.lower()]
        assert len(paused) == 1, paused
        for sock in crowd:
            sock.close()

        def login() -> bool:
            try:
                with front.wire() as late:
                    return late.value("SELECT 1") == "1"
            except (WireError, OSError):
                return False

        wait_until(login, "a new client may log in again")
