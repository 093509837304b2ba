"""Servers that die and messages that nobody asked for: T39 and T44.

Next on the path: `test_hostile.py`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.postgres.fakes import Relay
from tests.wire import Wire, batch, query, split, tags

Maker = Callable[..., Proxy]
LOST = {"57P01", "57P02", "08006", "08000"}
APP = "usename = 'app'"


@pytest.fixture
def front(postgres: Postgres, proxy: Maker) -> Proxy:
    """Give a proxy with two servers."""
    return proxy(postgres, pool={"max_connections": 2})


def end_backends(server: Postgres, where: str = APP) -> None:
    """End server processes by SQL, as an administrator does, and wait until they are gone."""
    pids = [pid for pid, _, _ in server.backends(where)]
    assert pids
    for pid in pids:
        server.sql("SELECT pg_terminate_backend(%s)", pid)
    gone = f"pid IN ({', '.join(map(str, pids))})"
    wait_until(lambda: not server.backends(gone), "the server processes are gone")


def one_error_and_the_end(client: Wire) -> str:
    """Read to the end: there must be exactly one error; return its SQLSTATE."""
    messages, rest = split(client.rest())
    client.sock.close()
    errors = [got.fields()["C"] for got in messages if got.tag == "E"]
    assert rest == b""
    assert len(errors) == 1, messages
    return errors[0]


def test_t44_a_server_that_ended_while_idle_is_nobodys_error(
    front: Proxy, postgres: Postgres
) -> None:
    """FATAL 57P01 to an idle server is not the reply to the next client (T39)."""
    with front.wire("app") as client, front.wire("app") as other:
        for _ in range(5):
            assert client.value("SELECT 1") == "1"
            end_backends(postgres)
            assert other.value("SELECT 2") == "2"


def test_t44_a_server_that_ends_in_a_transaction_is_one_error(
    front: Proxy, postgres: Postgres
) -> None:
    """The client is told once and disconnected; the transaction is gone."""
    client = front.wire("app")
    client.ask("BEGIN")
    end_backends(postgres, f"{APP} AND state = 'idle in transaction'")
    assert one_error_and_the_end(client) in LOST
    with front.wire("app") as other:
        assert other.value("SELECT 1") == "1"


@pytest.mark.parametrize("data", [query("SELECT pg_sleep(60)"), batch("SELECT pg_sleep(60)") * 3])
def test_t44_a_server_that_ends_in_a_query_is_one_error(
    data: bytes, front: Proxy, postgres: Postgres
) -> None:
    """No retry of what may have run, no hang, and no second error for what was pipelined."""
    client = front.wire("app")
    with front.wire("guest") as other:
        client.send(data)
        running = f"{APP} AND state = 'active'"
        wait_until(lambda: postgres.backends(running), "the query runs")
        end_backends(postgres, running)
        assert one_error_and_the_end(client) in LOST
        assert other.value("SELECT 1") == "1"


def test_t44_a_server_that_ends_in_the_middle_of_rows_is_one_error(
    front: Proxy, postgres: Postgres
) -> None:
    """The rows before it arrive whole; what follows is an error or the end, at a message's edge."""
    client = front.wire("app")
    client.send(query("SELECT g, pg_sleep(0.001) FROM generate_series(1, 1000000) g"))
    client.until("D", 5)
    end_backends(postgres, f"{APP} AND state = 'active'")
    assert one_error_and_the_end(client) in LOST


def test_t44_a_crash_of_the_server_is_survived(
    postgres_copy: Callable[..., Postgres], proxy: Maker
) -> None:
    """After kill -9 of a backend the whole server restarts; idle clients see nothing of it."""
    server = postgres_copy("pg15")
    front = proxy(server, pool={"max_connections": 3})
    idle, busy, inside = front.wire("app"), front.wire("app"), front.wire("app")
    assert idle.value("SELECT 1") == "1"
    inside.ask("BEGIN")
    busy.send(query("SELECT pg_sleep(60)"))
    running = f"{APP} AND state = 'active'"
    (victim, *_), *_ = wait_until(lambda: server.backends(running), "the query runs")
    os.kill(victim, signal.SIGKILL)
    assert one_error_and_the_end(busy) in LOST
    assert one_error_and_the_end(inside) in LOST
    assert idle.value("SELECT 2") == "2"
    idle.close()


def test_t44_a_server_that_is_down_makes_clients_wait_and_comes_back(
    postgres_copy: Callable[..., Postgres], proxy: Maker
) -> None:
    """Requests queue while nothing answers; the error after the borrow timeout names the cause."""
    server = postgres_copy("pg15")
    front = proxy(server, pool={"max_connections": 2, "connection_borrow_timeout": "3s"})
    client = front.wire("app")
    server.stop()
    error = client.ask("SELECT 1")[0].fields()
    assert error["C"] == "08000"
    assert error["M"] == "Timed-out waiting to acquire database connection."
    client.send(query("SELECT 'back'"))
    server.start()
    assert tags(client.until("Z")) == "TDCZ"
    front.wait_log("server_failed")
    client.close()


def test_t44_reset_connections_are_replaced(postgres: Postgres, proxy: Maker) -> None:
    """RST on all server connections: busy clients get one error, idle ones a new server."""
    with Relay(postgres) as relay:
        front = proxy(relay, pool={"max_connections": 2})
        idle, busy = front.wire("app"), front.wire("app")
        idle.value("SELECT 1")
        busy.ask("BEGIN")
        relay.reset()
        assert one_error_and_the_end(busy) in LOST
        assert idle.value("SELECT 2") == "2"
        idle.close()
        front.stop()


def test_t44_a_half_open_server_is_found_before_a_client_gets_it(
    postgres: Postgres, proxy: Maker
) -> None:
    """A server that idled longer than `check_delay` is asked first; a silent one is replaced."""
    with Relay(postgres) as relay:
        front = proxy(relay, pool={"max_connections": 1, "check_delay": "1s"})
        with front.wire("app") as client:
            client.value("SELECT 1")
            idle = f"{APP} AND now() - state_change > '1.2 s'"
            wait_until(lambda: postgres.backends(idle), "the server has idled")
            relay.stall()
            assert client.value("SELECT 2") == "2"
        front.stop()


def test_t44_a_server_that_goes_before_login_ends_is_tried_again(
    postgres: Postgres, proxy: Maker
) -> None:
    """Nothing was sent yet, so the client just waits longer."""
    with Relay(postgres) as relay:
        front = proxy(relay, pool={"max_connections": 1})
        relay.refusing = True
        client = Wire.open(front.host, front.port)
        client.send(b"\0\0\0\x13\0\x03\0\0user\0guest\0\0".replace(b"\x13", b"\x14"))
        wait_until(lambda: relay.accepted >= 2, "the proxy tries again")
        relay.refusing = False
        client.close()
        with front.wire("app") as other:
            assert other.value("SELECT 1") == "1"
        front.stop()


def test_t39_notifications_reach_the_listener_while_it_idles(front: Proxy) -> None:
    """LISTEN pins; what comes without being asked for is passed on at once."""
    with front.wire() as listener, front.wire() as other:
        listener.ask("LISTEN news")
        other.ask("NOTIFY news, 'first'")
        got = listener.until("A")[-1]
        assert got.body[4:] == b"news\0first\0"


def test_t39_notifications_never_reach_the_next_client(postgres: Postgres, proxy: Maker) -> None:
    """A departed listener's server is reset before anybody else gets it."""
    front = proxy(postgres, pool={"max_connections": 1})
    listener = front.wire()
    listener.ask("LISTEN news")
    listener.close()
    with front.wire() as other:
        for _ in range(10):
            postgres.sql("NOTIFY news, 'late'")
            assert tags(other.ask("SELECT 1")) == "TDCZ"


def test_t39_a_parameter_that_changes_while_idle_is_told_to_clients(
    postgres_copy: Callable[..., Postgres], proxy: Maker
) -> None:
    """ParameterStatus stays truthful after a reload of the server's configuration."""
    server = postgres_copy("pg15")
    server.sql("ALTER ROLE app RESET ALL")
    front = proxy(server, pool={"max_connections": 1})
    with front.wire("app") as client:
        assert client.parameters["TimeZone"] == "UTC"
        server.sql("ALTER DATABASE test SET intervalstyle = 'iso_8601'")
        end_backends(server)
        told = [got.body for got in client.ask("SELECT 1") if got.tag == "S"]
        assert b"IntervalStyle\0iso_8601\0" in told
        assert client.value("SHOW intervalstyle") == "iso_8601"


def test_t39_notices_between_rows_reach_only_their_client(front: Proxy) -> None:
    """Each client sees its own notices, between its own rows."""
    function = (
        "CREATE OR REPLACE FUNCTION noisy(x int) RETURNS int LANGUAGE plpgsql AS"
        " $$BEGIN RAISE NOTICE 'mine %', x; RETURN x; END$$"
    )
    with front.wire() as one, front.wire() as two:
        one.ask(function)
        for client, first in ((one, 1), (two, 100)):
            client.send(query(f"SELECT noisy(g) FROM generate_series({first}, {first + 3}) g"))
        for client, first in ((one, 1), (two, 100)):
            told = [got.fields()["M"] for got in client.until("Z") if got.tag == "N"]
            assert told == [f"mine {n}" for n in range(first, first + 4)]


def test_a_database_that_does_not_exist_is_an_error_that_says_so(front: Proxy) -> None:
    """The server's own words reach the client, and the client does not wait for a timeout."""
    assert 'database "nowhere" does not exist' in front.refusal(database="nowhere")
