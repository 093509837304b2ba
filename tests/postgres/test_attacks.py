"""Attacks: what a hostile or careless client could do to others through the proxy, and cannot.

Each test is a hole that was there once. Next on the path: `test_hostile.py`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import pytest

from tests.fix_postgres import Postgres
from tests.fix_proxy import Proxy
from tests.wire import (
    PROTOCOL_3_0,
    Wire,
    WireError,
    batch,
    bind,
    copy_done,
    execute,
    function_call,
    parse,
    query,
    sync,
    tags,
)

Maker = Callable[..., Proxy]
ASYNCPG_RESET = "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;"
LONG = " /*" + "x" * 70_000 + "*/"
LOCK = "SELECT pg_advisory_lock(4713)"
LISTEN = "LISTEN attack"

# Ways to run a statement whose effect the proxy has not looked at when it runs.
UNSEEN = {
    "a Parse after PREPARE": (
        query("PREPARE p AS SELECT 1"),
        batch(LISTEN, name="s"),
        query("DEALLOCATE ALL"),
    ),
    "EXECUTE of a Parse": (
        parse("s", LISTEN) + sync(),
        query("EXECUTE s"),
        query("DEALLOCATE ALL"),
    ),
    "EXECUTE behind a reset": (
        query(f"PREPARE p AS {LOCK}"),
        query(ASYNCPG_RESET),
        query("EXECUTE p"),
        query("DEALLOCATE ALL"),
    ),
    "PREPARE behind ROLLBACK in one batch": (
        query("BEGIN"),
        batch("SELECT 1 / 0"),
        batch("ROLLBACK", end=b"") + batch(f"PREPARE p AS {LOCK}"),
    ),
    "a long statement behind a reset": (
        parse("s", LOCK + LONG) + sync(),
        query(ASYNCPG_RESET),
        bind("", "s") + execute() + sync(),
        query("DEALLOCATE ALL"),
    ),
}
TRACES = (
    "SELECT count(*) FROM pg_listening_channels()",
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
    "SELECT count(*) FROM pg_prepared_statements",
)


@pytest.fixture
def single(postgres15: Postgres, proxy: Maker) -> Proxy:
    """Give a proxy with one server: whoever holds it keeps all others waiting."""
    return proxy(postgres15, pool={"max_connections": 1, "connection_borrow_timeout": "20s"})


def is_held(client: Wire) -> bool:
    """Return whether a query of this client, sent here, waits for another client's server."""
    client.send(query("SELECT 'free'"))
    return client.quiet(0.3)


def exchange(client: Wire, requests: Iterable[bytes]) -> None:
    """Send one request after the other; all must succeed until the connection ends."""
    for request in requests:
        client.send(request)
        assert "E" not in tags(client.until("Z"))


@pytest.mark.parametrize("how", UNSEEN)
def test_what_runs_by_a_name_of_its_own_leaves_nothing(how: str, single: Proxy) -> None:
    """Statements that live on one server only keep their client there with all they may do."""
    with single.wire() as client, single.wire() as other:
        for request in UNSEEN[how]:
            client.send(request)
            client.until("Z")
        assert is_held(other)
        client.close()
        other.until("Z")
        assert [other.value(sql) for sql in TRACES] == ["0"] * len(TRACES)


@pytest.mark.parametrize(
    "parameters",
    [
        {"Standard_Conforming_Strings": "off"},
        {"options": "-c standard_conforming-strings=off"},
        {"options": "-c standard\\_conforming_strings=off"},
    ],
    ids=["case", "mixed", "escaped"],
)
def test_start_up_parameters_that_move_quotes_pin_in_any_spelling(
    parameters: dict[str, str], single: Proxy
) -> None:
    """A LISTEN that only the server sees does not reach the next client."""
    with (
        single.wire(version=PROTOCOL_3_0, **parameters) as client,
        single.wire(version=PROTOCOL_3_0, **parameters) as other,
    ):
        assert "E" not in tags(client.ask("SELECT '\\''; LISTEN attack; --'"))
        assert client.value("SHOW standard_conforming_strings") == "off"
        assert is_held(other)
        client.close()
        other.until("Z")
        assert other.value(TRACES[0]) == "0"


@pytest.mark.parametrize(
    "setting", ["SET standard_conforming_strings = off", "SET standard_conforming_strings TO 0"]
)
def test_a_setting_that_moves_quotes_pins_for_good(setting: str, single: Proxy) -> None:
    """What only the server sees behind it does not reach the next client, whatever resets run."""
    with single.wire() as client, single.wire() as other:
        client.ask(setting)
        assert "E" not in tags(client.ask("SELECT '\\''; LISTEN attack; --'"))
        client.ask("RESET ALL")
        assert is_held(other)
        client.close()
        other.until("Z")
        assert other.value(TRACES[0]) == "0"


def test_one_client_holds_a_bounded_amount_of_statement_text(single: Proxy) -> None:
    """The one that goes on beyond it is told why, and the worker's memory stays."""
    before = single.rss_bytes()
    with single.wire() as client:
        text = "SELECT 1 /*" + "x" * 60_000
        names = (parse(f"s{n}", f"{text}{n}*/") + sync() for n in range(1_000))
        with pytest.raises(WireError):
            exchange(client, names)
        assert single.rss_bytes() - before < 100 << 20


def test_a_search_path_of_temporary_objects_pins(single: Proxy) -> None:
    """CREATE TABLE makes a temporary table there."""
    path = {"options": "-c search_path=pg_temp"}
    with (
        single.wire(version=PROTOCOL_3_0, **path) as client,
        single.wire(version=PROTOCOL_3_0, **path) as other,
    ):
        assert "E" not in tags(client.ask("CREATE TABLE attack (x int)"))
        assert is_held(other)


def test_a_long_parse_that_is_skipped_shows_no_foreign_statement(single: Proxy) -> None:
    """The unnamed statement of another client does not run in the place of one that failed."""
    with single.wire() as client, single.wire() as other:
        client.send(batch("SELECT 'secret'"))
        client.until("Z")
        other.send(bind("", "none") + parse("", "SELECT 1" + LONG) + sync())
        assert tags(other.until("Z")) == "EZ"
        other.send(bind() + execute() + sync())
        answer = other.until("Z")
        assert [got.fields()["C"] for got in answer if got.tag == "E"] == ["26000"], answer


def test_a_long_parse_of_a_name_in_use_is_refused(single: Proxy) -> None:
    """A second statement of the same name is an error of its length, as on a direct connection."""
    with single.wire() as client:
        client.send(batch("SELECT 'short'", name="s"))
        client.until("Z")
        client.send(parse("s", "SELECT 'long'" + LONG) + sync())
        answer = client.until("Z")
        assert [got.fields()["C"] for got in answer if got.tag == "E"] == ["42P05"], answer


@pytest.mark.parametrize("what", ["names", "known names", "ends", "both"])
def test_a_batch_longer_than_the_reply_queue_is_answered(what: str, single: Proxy) -> None:
    """Replies that the server keeps back until Sync do not block what leads to the Sync."""
    count = 5_000
    with single.wire() as client:
        if what == "known names":
            client.send(batch("SELECT 1", name="known"))
            client.until("Z")
        between = copy_done() if what == "both" else b""
        if what == "ends":
            parts = [parse("", "SELECT 1"), *([copy_done()] * count), bind(), execute()]
        else:
            parts = [parse(f"s{number}", "SELECT 1") + between for number in range(count)]
        client.send(b"".join(parts) + sync())
        answer = client.until("Z")
        assert "E" not in tags(answer)
        assert client.value("SELECT 'alive'") == "alive"


@pytest.mark.parametrize("oid", [2924, 2930])
def test_a_function_call_that_runs_text_pins(oid: int, single: Proxy) -> None:
    """query_to_xml and its kin run SQL that the proxy does not see."""
    with single.wire() as client, single.wire() as other:
        lock = LOCK.encode()
        client.send(function_call(oid, [lock, b"\1", b"\1", b""]))
        assert "E" not in tags(client.until("Z"))
        assert is_held(other)


def busy(front: Proxy, stop: threading.Event, failures: list[BaseException]) -> None:
    """Ask without a pause until told to stop."""
    try:
        with front.wire("postgres") as client:
            while not stop.is_set():
                client.value("SELECT pg_sleep(0.002)")
    except BaseException as failure:
        failures.append(failure)


def test_the_first_client_of_a_pool_is_served_beside_a_busy_pool(
    postgres15: Postgres, proxy: Maker
) -> None:
    """A login that needs a server waits its turn, not until nobody else wants one."""
    front = proxy(postgres15, pool={"max_connections": 1, "connection_borrow_timeout": "10s"})
    stop, failures = threading.Event(), list[BaseException]()
    crowd = [threading.Thread(target=busy, args=(front, stop, failures)) for _ in range(8)]
    for thread in crowd:
        thread.start()
    try:
        with front.wire("guest") as client:
            assert client.value("SELECT current_user") == "guest"
    finally:
        stop.set()
        for thread in crowd:
            thread.join()
    assert failures == []


def test_a_minimum_does_not_keep_other_pools_out(postgres15: Postgres, proxy: Maker) -> None:
    """Warm servers of one pool are no reason to serve another one never."""
    pool = {"max_connections": 2, "min_connections": 2, "connection_borrow_timeout": "5s"}
    front = proxy(postgres15, pool=pool)
    with front.wire("postgres") as first:
        assert first.value("SELECT current_user") == "postgres"
        with front.wire("guest") as second:
            assert second.value("SELECT current_user") == "guest"
            assert first.value("SELECT current_user") == "postgres"


def test_a_pool_that_cannot_be_set_up_does_not_hold_up_others(
    postgres15: Postgres, proxy: Maker
) -> None:
    """A client whose start-up parameters make init_query fail delays nobody else's connections."""
    front = proxy(
        postgres15,
        pool={
            "max_connections": 4,
            "connection_borrow_timeout": "2s",
            "init_query": "CREATE TEMP TABLE init (x int)",
        },
    )
    with pytest.raises(WireError, match="Timed-out"):
        front.wire("guest", default_transaction_read_only="on")
    begun = time.monotonic()
    with front.wire("postgres") as client:
        assert client.value("SELECT 1") == "1"
    assert time.monotonic() - begun < 0.8


def test_a_function_call_inside_a_batch_harms_nobody_else(postgres: Postgres, proxy: Maker) -> None:
    """PostgreSQL 18 says idle behind it and then fails the next statement, whoever sends it."""
    front = proxy(postgres, pool={"max_connections": 1})
    length = function_call(1317, [b"abc"])
    with front.wire() as client, front.wire() as other:
        client.send(parse("", "SELECT 1") + bind() + execute() + length + sync())
        client.until("Z", 2)
        assert other.value("SELECT 'clean'") == "clean"
