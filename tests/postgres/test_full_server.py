"""A server that takes fewer connections than it is allowed to be asked for (SQLSTATE 53300).

Somebody else uses it, too, or a role has a limit of its own. What connections there are must go
round among all clients, in whichever worker and pool they are. Next on the path: `test_workers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing

import pytest

from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.postgres.load import run_clients
from tests.postgres.test_attacks_more import budget, cells
from tests.postgres.test_attacks_workers import clients_at
from tests.processes import cpu_seconds
from tests.wire import query

Maker = Callable[..., Proxy]
WORKERS = 3
CLIENTS = 12
TRANSACTIONS = 60
WAIT = {"connection_borrow_timeout": "20s"}

pytestmark = pytest.mark.timeout(120)


def fill(stack: ExitStack, server: Postgres, left: int) -> None:
    """Open direct connections until an ordinary user may open only `left` more."""
    limit = 0
    for name in ("max_connections", "superuser_reserved_connections"):
        value = int(server.sql(f"SHOW {name}")[0][0])
        limit += value if name == "max_connections" else -value
    for _ in range(limit - left):
        stack.enter_context(closing(server.connect("app")))


def test_one_connection_serves_the_clients_of_all_workers(
    postgres_copy: Callable[..., Postgres], proxy: Maker
) -> None:
    server = postgres_copy()
    server.sql("ALTER ROLE guest CONNECTION LIMIT 1")
    front = proxy(server, workers=2, pool={"max_connections": 4, **WAIT})
    with clients_at(front, 0, 1, 0, 1) as clients:
        for _ in range(20):
            assert [client.value("SELECT 1") for client in clients] == ["1"] * 4


@pytest.mark.parametrize("full", ["role", "server"])
def test_under_load_every_client_of_every_worker_gets_on(
    full: str, postgres_copy: Callable[..., Postgres], proxy: Maker
) -> None:
    """All do the same work at the same time; none is left behind until the others are done."""
    server = postgres_copy(max_connections="12")
    with ExitStack() as stack:
        if full == "role":
            server.sql("ALTER ROLE guest CONNECTION LIMIT 2")
        else:
            fill(stack, server, left=2)
        front = proxy(server, workers=WORKERS, pool={"max_connections": 8, **WAIT})

        def work(number: int) -> int:
            with front.wire("guest") as client:
                for turn in range(TRANSACTIONS):
                    assert client.value(f"SELECT '{number}-{turn}'") == f"{number}-{turn}"
            return number

        assert run_clients(CLIENTS, work) == [*range(CLIENTS)]


def test_idle_servers_of_one_pool_make_room_for_another(
    postgres_copy: Callable[..., Postgres], proxy: Maker
) -> None:
    """The budget has room, the server has not: an idle connection is closed for the new pool."""
    server = postgres_copy(max_connections="12")
    with ExitStack() as stack:
        fill(stack, server, left=3)
        front = proxy(server, pool={"max_connections": 8, **WAIT})
        with ExitStack() as busy:
            for _ in range(3):
                client = busy.enter_context(front.wire("guest"))
                client.ask("BEGIN")
        with front.wire("app") as other:
            assert other.value("SELECT 1") == "1"


def test_a_role_that_may_have_no_more_connections_waits_and_goes_on(
    postgres_copy: Callable[..., Postgres], proxy: Maker
) -> None:
    """53300 below the budget: no error, no spinning, and no permit is lost."""
    server = postgres_copy()
    front = proxy(server, workers=2, pool={"max_connections": 4})
    with clients_at(front, 0, 1) as (first, second):
        server.sql("ALTER ROLE guest CONNECTION LIMIT 1")
        assert front.ask("pause")["ok"]
        assert front.ask("resume")["ok"]
        first.ask("BEGIN")
        second.send(query("SELECT 'served'"))
        front.wait_log("event=server_failed .*sqlstate=53300", count=3)
        used = sum(map(cpu_seconds, front.children()))
        assert second.quiet(0.3)
        assert sum(map(cpu_seconds, front.children())) - used < 0.1
        server.sql("ALTER ROLE guest CONNECTION LIMIT -1")
        assert cells(second.until("Z")) == ["served"]
        first.ask("COMMIT")
        with clients_at(front, 0, 0, 1, 1) as more:
            for client in more[:3]:
                client.ask("BEGIN")
            assert more[3].value("SELECT 1") == "1"
        wait_until(lambda: budget(front)["orphaned"] == 0, "no permit without an owner")
        assert budget(front)["configured"] == 4
