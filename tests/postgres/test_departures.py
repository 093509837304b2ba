"""Clients that leave in every state: T24 to T26. The pool stays clean and memory flat.

Next on the path: `test_cancel.py`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest

from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.postgres.load import scale
from tests.wire import Wire, batch, copy_data, parse, query, sync, tags, terminate

Maker = Callable[..., Proxy]
MIB = 1 << 20


@pytest.fixture
def single(postgres: Postgres, proxy: Maker) -> Proxy:
    """Give a proxy with one server and an empty table."""
    postgres.sql("DROP TABLE IF EXISTS left_behind; CREATE TABLE left_behind (x int)")
    return proxy(postgres, pool={"max_connections": 1})


def check_clean(front: Proxy, server: Postgres) -> None:
    """The next client gets a working server, and nothing of the last one is left."""
    with front.wire() as client:
        assert client.value("SELECT 'clean'") == "clean"
        assert client.value("SELECT count(*) FROM left_behind") == "0"
    wait_until(lambda: not server.backends("state <> 'idle'"), "the server is idle")
    assert len(server.backends("usename = 'postgres'")) <= 1


@pytest.mark.parametrize("count", [1, 10, 200])
def test_t24_fin_right_behind_the_last_sync_still_gets_all_replies(
    count: int, single: Proxy, postgres: Postgres
) -> None:
    """A client that half-closes may still read everything that it asked for."""
    client = single.wire()
    client.send(batch("SELECT 'reply'") * count)
    client.half_close()
    assert tags(client.until("Z", count)) == "12TDCZ" * count
    assert client.rest() == b""
    client.sock.close()
    check_clean(single, postgres)


def test_t24_fin_inside_a_transaction_rolls_it_back(single: Proxy, postgres: Postgres) -> None:
    """A client that stops sending inside a transaction has given it up."""
    client = single.wire()
    client.ask("BEGIN; INSERT INTO left_behind VALUES (1)")
    client.half_close()
    client.rest()
    client.sock.close()
    check_clean(single, postgres)


def in_transaction(client: Wire) -> None:
    """Leave with a transaction open."""
    client.ask("BEGIN; INSERT INTO left_behind VALUES (1)")


def in_failed_transaction(client: Wire) -> None:
    """Leave with a failed transaction open."""
    client.ask("BEGIN; INSERT INTO left_behind VALUES (1)")
    client.ask("SELECT 1/0")


def in_copy_in(client: Wire) -> None:
    """Leave in the middle of COPY FROM STDIN, in the middle of a message."""
    client.send(query("COPY left_behind FROM STDIN"))
    client.until("G")
    client.send(copy_data(b"1\n") * 10, b"d\0\0\1\0half")


def in_copy_out(client: Wire) -> None:
    """Leave in the middle of COPY TO STDOUT."""
    client.send(query("COPY (SELECT generate_series(1, 2000000)) TO STDOUT"))
    client.until("d", 10)


def in_a_large_row(client: Wire) -> None:
    """Leave in the middle of a row of 64 MiB."""
    client.send(query("SELECT repeat('x', 64 << 20)"))
    client.exactly(100_000)


def in_a_request(client: Wire) -> None:
    """Leave in the middle of a message."""
    client.send(parse("", "SELECT 1"), b"B\0\0\1\0")


def with_replies_unread(client: Wire) -> None:
    """Leave with a hundred replies on the way."""
    client.send(batch("SELECT repeat('y', 10000)") * 100)


def in_a_running_query(client: Wire) -> None:
    """Leave while a query sleeps."""
    client.send(query("SELECT pg_sleep(60)"))


def with_an_open_batch(client: Wire) -> None:
    """Leave with a batch that has no Sync yet."""
    client.send(batch("INSERT INTO left_behind VALUES (1)", end=b"H\0\0\0\4"))
    client.until("C")


STATES = (
    in_transaction,
    in_failed_transaction,
    in_copy_in,
    in_copy_out,
    in_a_large_row,
    in_a_request,
    with_replies_unread,
    in_a_running_query,
    with_an_open_batch,
)


@pytest.mark.parametrize("how", ["terminate", "fin", "reset"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_t25_a_client_that_leaves_anywhere_leaves_a_clean_pool(
    state: Callable[[Wire], None], how: str, single: Proxy, postgres: Postgres
) -> None:
    """Terminate, FIN or RST in any state: rolled back or closed, never idle in transaction."""
    client = single.wire()
    state(client)
    if how == "reset":
        client.reset()
    elif how == "fin":
        client.sock.close()
    else:
        client.send(terminate())
        client.sock.close()
    check_clean(single, postgres)


def slow_reader(front: Proxy) -> Wire:
    """Log in with a small receive buffer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    sock.connect((front.host, front.port))
    client = Wire(sock)
    client.send(struct.pack("!II", 23, 0x30000) + b"user\0postgres\0\0")
    client.until("Z")
    return client


def test_t26_a_slow_reader_costs_no_memory_and_holds_its_server(
    single: Proxy, postgres: Postgres
) -> None:
    """The proxy stops reading from the server; others wait until all bytes have gone out."""
    size = max(64, int(1024 * scale())) * MIB
    client = slow_reader(single)
    before = single.rss_bytes()
    client.send(query(f"SELECT repeat('z', 1000000) FROM generate_series(1, {size // 1_000_000})"))
    client.until("D")
    stuck = "state = 'active' AND wait_event = 'ClientWrite'"
    wait_until(lambda: postgres.backends(stuck), "the server feels the back-pressure")
    assert single.rss_bytes() - before < 4 * MIB
    with single.wire(database="postgres") as waiter:
        waiter.send(query("SELECT 'next'"))
        assert waiter.quiet(0.3)
        assert len(client.until("D", size // 1_000_000 - 1)) == size // 1_000_000 - 1
        client.until("Z")
        assert tags(waiter.until("Z")) == "TDCZ"
    assert single.rss_bytes() - before < 4 * MIB
    client.close()


@pytest.mark.parametrize("direction", ["row", "copy out", "copy in", "bind", "query"])
def test_t15_memory_stays_flat_for_a_message_of_any_size(direction: str, single: Proxy) -> None:
    """A single message of many MiB streams through; the worker does not grow with it."""
    size = max(48, int(480 * scale())) * MIB
    text = b"x" * size
    with single.wire() as client:
        client.value("SELECT 1")
        before = single.rss_bytes()
        if direction == "row":
            client.send(query(f"SELECT repeat('x', {size})"))
        elif direction == "copy out":
            client.send(query(f"COPY (SELECT repeat('x', {size})) TO STDOUT"))
        elif direction == "copy in":
            client.ask("DROP TABLE IF EXISTS large; CREATE UNLOGGED TABLE large (t text)")
            client.send(query("COPY large FROM STDIN"))
            client.until("G")
            client.send(copy_data(text + b"\n"), b"c\0\0\0\4")
        elif direction == "bind":
            client.send(batch("SELECT length($1)", [text]))
        else:
            client.send(query(b"SELECT length('" + text + b"')"))
        seen = client.until("Z")
        assert "E" not in tags(seen)
        assert single.rss_bytes() - before < 4 * MIB
        client.send(sync())
        client.until("Z")
    with single.wire() as client:
        client.ask("DROP TABLE IF EXISTS large")
