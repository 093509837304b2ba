"""Pools: the budget, the queue, time limits and lifetimes, on a real server.

Pins are in `test_pins.py`, logins in `test_auth.py`. Next on the path: `test_pins.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.postgres.load import run_clients, sampled
from tests.wire import Message, Wire, WireError, query

Maker = Callable[..., Proxy]
APP = "usename = 'app'"
TIMED_OUT = "Timed-out waiting to acquire database connection."


def backend(client: Wire) -> str | None:
    """Return the process id of the server that runs this client's next query."""
    return client.value("SELECT pg_backend_pid()")


def only_error(messages: list[Message]) -> dict[str, str]:
    """Return the fields of the only ErrorResponse among messages."""
    errors = [got.fields() for got in messages if got.tag == "E"]
    assert len(errors) == 1, messages
    return errors[0]


def ended(client: Wire) -> dict[str, str]:
    """Wait until the proxy ends a connection with an error, and return the error's fields."""
    error = client.until("E")[-1].fields()
    assert client.rest() == b""
    client.sock.close()
    return error


def test_budget_is_never_exceeded_and_fully_used(postgres: Postgres, proxy: Maker) -> None:
    """Forty clients that come and go meet exactly four server connections."""
    front = proxy(postgres, pool={"max_connections": 4})

    def work(number: int) -> None:
        for _ in range(5):
            with front.wire("app") as client:
                for _ in range(4):
                    assert client.value(f"SELECT {number} FROM pg_sleep(0.002)") == str(number)

    with sampled(postgres, APP) as peak:
        run_clients(40, work)
    assert peak.most == 4, peak


def test_pools_of_two_users_share_the_budget(postgres15: Postgres, proxy: Maker) -> None:
    """A pool with waiters takes an idle server of another pool, within the same budget."""
    front = proxy(postgres15, pool={"max_connections": 2})
    where = "usename IN ('app', 'guest')"
    with sampled(postgres15, where) as peak, front.wire("app") as one, front.wire("app") as two:
        one.ask("BEGIN")
        two.ask("BEGIN")
        one.ask("COMMIT")
        two.ask("COMMIT")
        with front.wire("guest") as third:
            assert third.value("SELECT current_user") == "guest"
        assert one.value("SELECT current_user") == "app"
    assert peak.most <= 2


def test_waiters_are_served_first_in_first_out(postgres15: Postgres, proxy: Maker) -> None:
    """With one server, statements run in the order in which their clients came."""
    postgres15.sql("DROP TABLE IF EXISTS fifo; CREATE TABLE fifo (id serial, who int)")
    postgres15.sql("GRANT ALL ON fifo, fifo_id_seq TO PUBLIC")
    front = proxy(postgres15, pool={"max_connections": 1, "query_wait_notify": "100ms"})
    holder = front.wire("app")
    clients = [front.wire("app") for _ in range(8)]
    holder.ask("BEGIN")
    for number, client in enumerate(clients):
        client.send(query(f"INSERT INTO fifo (who) VALUES ({number})"))
        client.until("N")
    holder.ask("COMMIT")
    for client in clients:
        client.until("Z")
        client.close()
    holder.close()
    assert [who for (who,) in postgres15.sql("SELECT who FROM fifo ORDER BY id")] == [*range(8)]


def test_borrow_timeout_gives_the_documented_error_and_the_client_goes_on(
    postgres15: Postgres, proxy: Maker
) -> None:
    """The text is RDS Proxy's; detail and hint name the pool, its numbers and the cause."""
    front = proxy(postgres15, pool={"max_connections": 1, "connection_borrow_timeout": "1s"})
    with front.wire("app") as holder, front.wire("app") as client:
        holder.ask("BEGIN")
        began = time.monotonic()
        error = only_error(client.ask("SELECT 1"))
        assert 0.9 < time.monotonic() - began < 4
        assert (error["C"], error["M"]) == ("08000", TIMED_OUT)
        assert "app" in error["D"]
        assert "test" in error["D"]
        assert "1" in error["D"]
        assert error["H"]
        holder.ask("COMMIT")
        assert client.value("SELECT 1") == "1"


def test_borrow_timeout_zero_is_an_error_unless_a_server_is_free(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Nobody waits with `connection_borrow_timeout = 0`."""
    front = proxy(postgres15, pool={"max_connections": 1, "connection_borrow_timeout": "0s"})

    def first() -> Wire | None:
        try:
            return front.wire("app")
        except WireError:
            return None

    holder, client = wait_until(first, "a first login"), wait_until(first, "a second login")
    wait_until(lambda: holder.ask("BEGIN")[-1].body == b"T", "the transaction begins")
    began = time.monotonic()
    assert only_error(client.ask("SELECT 1"))["M"] == TIMED_OUT
    assert time.monotonic() - began < 1
    holder.ask("COMMIT")
    assert client.value("SELECT 1") == "1"
    holder.close()
    client.close()


def test_a_waiter_is_told_its_place_by_a_notice(postgres15: Postgres, proxy: Maker) -> None:
    """After `query_wait_notify` a NOTICE comes, before the answer."""
    front = proxy(postgres15, pool={"max_connections": 1, "query_wait_notify": "1s"})
    with front.wire("app") as holder, front.wire("app") as client:
        holder.ask("BEGIN")
        client.send(query("SELECT 7"))
        notice = client.until("N")[-1].fields()
        assert notice["S"] == "NOTICE"
        assert "1" in notice["M"] + notice.get("D", "")
        holder.ask("COMMIT")
        assert [got.tag for got in client.until("Z")] == ["T", "D", "C", "Z"]


def test_an_idle_server_is_closed_after_idle_timeout(postgres15: Postgres, proxy: Maker) -> None:
    """With no minimum the pool empties, and fills again on demand."""
    front = proxy(postgres15, pool={"max_connections": 3, "idle_timeout": "1s"})
    with front.wire("app") as client:
        first = backend(client)
        wait_until(lambda: not postgres15.backends(APP), "the idle server is closed")
        assert backend(client) != first


def test_min_connections_are_kept_warm(postgres15: Postgres, proxy: Maker) -> None:
    """A pool that was used has its minimum, also after `idle_timeout`."""
    pool = {"max_connections": 5, "min_connections": 2, "idle_timeout": "1s"}
    front = proxy(postgres15, pool=pool)
    with front.wire("app") as client:
        client.value("SELECT 1")
        wait_until(lambda: len(postgres15.backends(APP)) == 2, "two servers are warm")
        idle = f"{APP} AND now() - greatest(backend_start, state_change) > '2 s'"
        wait_until(lambda: len(postgres15.backends(idle)) == 2, "two stay beyond idle_timeout")
        assert len(postgres15.backends(APP)) == 2


def test_a_server_is_replaced_after_max_lifetime(postgres15: Postgres, proxy: Maker) -> None:
    """The client does not notice."""
    front = proxy(postgres15, pool={"max_connections": 1, "max_lifetime": "1s"})
    with front.wire("app") as client:
        first = backend(client)
        wait_until(lambda: backend(client) != first, "another server process")


def test_max_idle_percent_closes_what_is_above_it(postgres15: Postgres, proxy: Maker) -> None:
    """Half of a budget of four may idle."""
    front = proxy(postgres15, pool={"max_connections": 4, "max_idle_connections_percent": 50})
    clients = [front.wire("app") for _ in range(4)]
    for client in clients:
        client.ask("BEGIN")
    assert len(postgres15.backends(APP)) == 4
    for client in clients:
        client.ask("COMMIT")
    wait_until(lambda: len(postgres15.backends(APP)) == 2, "two idle servers are left")
    for client in clients:
        client.close()


def test_init_query_is_the_baseline_of_each_server(postgres15: Postgres, proxy: Maker) -> None:
    """It runs before the first client and again after a reset."""
    pool = {"max_connections": 1, "init_query": "SET work_mem = '9MB'"}
    front = proxy(postgres15, pool=pool)
    with front.wire("app") as client:
        assert client.value("SHOW work_mem") == "9MB"
        client.ask("SET work_mem = '11MB'")
        assert client.value("SHOW work_mem") == "11MB"
    with front.wire("app") as client:
        assert client.value("SHOW work_mem") == "9MB"


def test_an_init_query_that_fails_is_an_error_with_its_cause(
    postgres15: Postgres, proxy: Maker
) -> None:
    """No client gets a server on which it did not run."""
    pool = {"init_query": "SELECT broken", "connection_borrow_timeout": "2s"}
    front = proxy(postgres15, pool=pool)
    front.refusal("app")
    front.wait_log("broken")


def test_idle_client_timeout_ends_the_client(postgres15: Postgres, proxy: Maker) -> None:
    """The client is told 57P05, and the others live on."""
    front = proxy(postgres15, idle_client_timeout="1s")
    idle = front.wire("app")
    assert ended(idle)["C"] == "57P05"


def test_idle_client_timeout_does_not_count_work(postgres15: Postgres, proxy: Maker) -> None:
    """A query longer than the limit is not idleness."""
    front = proxy(postgres15, idle_client_timeout="1s")
    with front.wire("app") as client:
        assert client.value("SELECT 5 FROM pg_sleep(2)") == "5"


def test_idle_transaction_timeout_ends_client_and_transaction(
    postgres15: Postgres, proxy: Maker
) -> None:
    """The client is told 25P03 and its server is rolled back or closed."""
    front = proxy(postgres15, pool={"max_connections": 1, "idle_transaction_timeout": "1s"})
    client = front.wire("app")
    client.ask("BEGIN")
    assert ended(client)["C"] == "25P03"
    wait_until(
        lambda: not postgres15.backends(f"{APP} AND state LIKE 'idle in%'"), "no transaction"
    )
    with front.wire("app") as other:
        assert other.value("SELECT 1") == "1"


def test_query_timeout_cancels_the_query_and_keeps_the_client(
    postgres15: Postgres, proxy: Maker
) -> None:
    """The statement does not run on; its client is told 57014 and goes on."""
    front = proxy(postgres15, pool={"max_connections": 1, "query_timeout": "1s"})
    with front.wire("app") as client:
        client.send(query("SELECT pg_sleep(60)"))
        errors = [message.fields() for message in client.until("Z") if message.tag == "E"]
        assert [error["C"] for error in errors] == ["57014"]
        assert client.value("SELECT 'on'") == "on"
    wait_until(lambda: not postgres15.backends(f"{APP} AND state = 'active'"), "cancelled")
    with front.wire("app") as other:
        assert other.value("SELECT 1") == "1"


def test_login_timeout_ends_half_a_login(postgres15: Postgres, proxy: Maker) -> None:
    """A connection that says nothing, or half, or no password, does not stay."""
    front = proxy(postgres15, login_timeout="1s")
    halves = [Wire.open(front.host, front.port) for _ in range(3)]
    halves[1].send(b"\0\0\0\x50\0\x03\0\0user")
    halves[2].send(b"\0\0\0\x12\0\x03\0\0user\0app\0\0")
    for half in halves:
        half.rest()
        half.sock.close()


def test_client_limit_is_an_error_and_counts_only_the_living(
    postgres15: Postgres, proxy: Maker
) -> None:
    """One client too many is told 53300; when one leaves, the next may come."""
    front = proxy(postgres15, max_clients=3)

    def more() -> Wire | None:
        try:
            return front.wire("app")
        except WireError:
            return None

    clients = [wait_until(more, "a login below the limit") for _ in range(3)]
    assert "53300" in front.refusal("app")
    clients.pop().close()
    clients.append(wait_until(more, "a login after one has left"))
    for client in clients:
        client.close()


def test_session_mode_keeps_the_server_and_resets_it_afterwards(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Two clients have two servers; the next one finds no trace."""
    front = proxy(postgres15, pool={"mode": "session", "max_connections": 2})
    one, two = front.wire("app"), front.wire("app")
    pids = {backend(one), backend(two)}
    assert len(pids) == 2
    one.ask("SET work_mem = '13MB'")
    assert {backend(one), backend(two)} == pids
    assert one.value("SHOW work_mem") == "13MB"
    one.close()
    with front.wire("app") as three:
        assert three.value("SHOW work_mem") == "4MB"
        assert backend(three) in pids
    two.close()


def test_a_percentage_counts_what_ordinary_users_may_have(
    postgres_copy: Callable[..., Postgres], proxy: Maker
) -> None:
    """100 % of 13 connections, 3 of them reserved, is ten; the proxy's own are taken off."""
    server = postgres_copy("pg15", max_connections="13")
    auth = ({"user": "guest", "scheme": "trust"},)
    pool = {"max_connections_percent": 100, "max_connections": None}
    front = proxy(server, auth=auth, pool=pool)

    def work(_: int) -> None:
        with front.wire("guest") as client:
            for _ in range(10):
                client.value("SELECT 1 FROM pg_sleep(0.01)")

    with sampled(server, "usename = 'guest'") as peak:
        run_clients(30, work)
    assert 8 <= peak.most <= 10
