"""Cancel requests: T43 without TLS. A cancel reaches the query of its own client or nothing.

Next on the path: `test_faults.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.postgres.load import run_clients, scale, seed
from tests.wire import PROTOCOL_3_0, PROTOCOL_3_2, Wire, batch, query, send_cancel

Maker = Callable[..., Proxy]
SLEEPS = "state = 'active' AND query LIKE '%pg_sleep%'"


@pytest.fixture
def front(postgres: Postgres, proxy: Maker) -> Proxy:
    """Give a proxy with two servers."""
    return proxy(postgres, pool={"max_connections": 2})


def cancel(front: Proxy, client: Wire) -> None:
    """Send the cancel request of a client."""
    send_cancel(front.host, front.port, client.pid, client.secret)


def codes(client: Wire) -> list[str]:
    """Read to ReadyForQuery and return the SQLSTATEs of errors."""
    return [got.fields()["C"] for got in client.until("Z") if got.tag == "E"]


@pytest.mark.parametrize("version", [PROTOCOL_3_0, PROTOCOL_3_2], ids=["3.0", "3.2"])
def test_t43_cancel_ends_the_running_query(version: int, front: Proxy, postgres: Postgres) -> None:
    """The client gets 57014, goes on, and the key is of its protocol's length."""
    with front.wire(version=version) as client:
        assert len(client.secret) == 4 if version == PROTOCOL_3_0 else 4 < len(client.secret) <= 256
        client.send(query("SELECT pg_sleep(60)"))
        wait_until(lambda: postgres.backends(SLEEPS), "the query runs")
        cancel(front, client)
        assert codes(client) == ["57014"]
        assert client.value("SELECT 1") == "1"


def test_t43_cancel_in_a_transaction_fails_it(front: Proxy, postgres: Postgres) -> None:
    """The transaction is the client's to end."""
    with front.wire() as client:
        client.ask("BEGIN")
        client.send(batch("SELECT pg_sleep(60)"))
        wait_until(lambda: postgres.backends(SLEEPS), "the query runs")
        cancel(front, client)
        assert codes(client) == ["57014"]
        client.send(query("SELECT 1"))
        assert codes(client) == ["25P02"]
        client.ask("ROLLBACK")
        assert client.value("SELECT 1") == "1"


def test_t43_cancel_of_an_idle_client_is_nothing(front: Proxy) -> None:
    """Neither the client nor anybody else notices."""
    with front.wire() as client, front.wire() as other:
        for _ in range(20):
            cancel(front, client)
            other.send(query("SELECT 1 FROM pg_sleep(0.01)"))
            assert codes(other) == []
        assert client.value("SELECT 1") == "1"


def test_t43_cancel_inside_an_idle_transaction_is_nothing(front: Proxy) -> None:
    """What the client runs next is not cancelled."""
    with front.wire() as client:
        client.ask("BEGIN")
        cancel(front, client)
        assert client.value("SELECT 1 FROM pg_sleep(0.1)") == "1"
        client.ask("COMMIT")


@pytest.mark.parametrize("wrong", ["secret", "pid", "short", "long"])
def test_t43_a_wrong_key_is_nothing(wrong: str, front: Proxy, postgres: Postgres) -> None:
    """A guess changes nothing and is answered like a hit: with a close."""
    with front.wire() as client:
        client.send(query("SELECT 1 FROM pg_sleep(0.5)"))
        wait_until(lambda: postgres.backends(SLEEPS), "the query runs")
        flipped = bytes([client.secret[0] ^ 1]) + client.secret[1:]
        pid, secret = {
            "secret": (client.pid, flipped),
            "pid": (client.pid ^ 1, client.secret),
            "short": (client.pid, client.secret[:2]),
            "long": (client.pid, client.secret + b"x" * 250),
        }[wrong]
        send_cancel(front.host, front.port, pid, secret)
        assert codes(client) == []


def test_t43_a_client_that_waits_for_a_server_gets_57014(front: Proxy) -> None:
    """Its query never runs, its turn goes to the next, and it may ask again."""
    with front.wire() as one, front.wire() as two, front.wire() as client, front.wire() as next_one:
        one.ask("BEGIN")
        two.ask("BEGIN")
        client.send(query("SELECT 'never'"))
        assert client.quiet(0.2)
        next_one.send(query("SELECT 'next'"))
        cancel(front, client)
        assert codes(client) == ["57014"]
        one.ask("COMMIT")
        assert codes(next_one) == []
        assert client.value("SELECT 1") == "1"
        two.ask("COMMIT")


def test_t43_a_late_cancel_never_hits_the_next_user_of_the_server(
    postgres: Postgres, proxy: Maker
) -> None:
    """Cancels race with the end of their query while others take over the only server."""
    front = proxy(postgres, pool={"max_connections": 1})
    start = seed()
    turns = int(600 * scale())

    def canceller(number: int) -> None:
        dice = random.Random(start + number)
        with front.wire() as client:
            for _ in range(turns):
                client.send(query(f"SELECT 1 FROM pg_sleep({dice.random() * 0.004})"))
                cancel(front, client)
                assert set(codes(client)) <= {"57014"}

    def victim(_: int) -> None:
        with front.wire() as client:
            for _ in range(turns * 2):
                client.send(query("SELECT 'untouched' FROM pg_sleep(0.001)"))
                assert codes(client) == []

    run_clients(6, lambda number: canceller(number) if number < 3 else victim(number))


def test_t43_a_burst_of_cancels_is_bounded(front: Proxy, postgres: Postgres) -> None:
    """Thousands of cancels open few connections to the server and harm nobody."""
    with front.wire() as client, front.wire() as other:
        client.send(query("SELECT pg_sleep(60)"))
        wait_until(lambda: postgres.backends(SLEEPS), "the query runs")

        def fire(_: int) -> None:
            for _ in range(int(1000 * scale())):
                cancel(front, client)

        run_clients(10, fire)
        assert codes(client) == ["57014"]
        assert other.value("SELECT 1") == "1"
        assert client.value("SELECT 1") == "1"


def test_t43_a_cancel_of_a_client_that_left_is_nothing(front: Proxy) -> None:
    """Keys die with their client."""
    client = front.wire()
    client.close()
    with front.wire() as other:
        other.send(query("SELECT 1 FROM pg_sleep(0.3)"))
        cancel(front, client)
        assert codes(other) == []
