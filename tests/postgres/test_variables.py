"""Session variables: what a client sets is its own on every server, and nobody else's.

Two clients take turns on one server, so that each statement finds the other one's variables there.
What is not followed pins (`test_pins.py`). Next on the path: `test_no_leak.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.wire import Wire, batch, bind, describe, execute, parse, query, row, sync, tags

Maker = Callable[..., Proxy]
FATAL_STATE = "session's variables could not be set again"


@pytest.fixture
def single(postgres: Postgres, proxy: Maker) -> Proxy:
    """Give a proxy with one server, whose waiters are soon told if it is not free."""
    return proxy(postgres, pool={"max_connections": 1, "connection_borrow_timeout": "5s"})


def begin(client: Wire, *texts: str) -> None:
    for text in ("BEGIN", *texts):
        client.ask(text)


def test_a_set_pins_nobody_and_is_found_again(single: Proxy) -> None:
    with single.wire() as one, single.wire() as other:
        for number in range(3):
            one.ask(f"SET work_mem = '{number + 5}MB'")
            assert other.value("SHOW work_mem") == "4MB"
            other.ask(f"SET work_mem TO '{number + 50}MB'")
            assert one.value("SHOW work_mem") == f"{number + 5}MB"
            assert other.value("SHOW work_mem") == f"{number + 50}MB"
            one.ask("RESET work_mem")
            other.ask("SET work_mem TO DEFAULT")
            assert other.value("SHOW work_mem") == "4MB"
            assert one.value("SHOW work_mem") == "4MB"
        assert "reason=" not in single.log()


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_set_counts_with_its_transaction(end: str, single: Proxy) -> None:
    with single.wire() as one, single.wire() as other:
        one.ask("SET work_mem = '5MB'")
        begin(one, "SET work_mem = '6MB'", "SET LOCAL statement_timeout = '7s'")
        assert one.value("SHOW work_mem") == "6MB"
        one.ask(end)
        assert other.value("SHOW work_mem") == "4MB"
        assert one.value("SHOW work_mem") == ("6MB" if end == "COMMIT" else "5MB")
        assert one.value("SHOW statement_timeout") == "0"
        assert "reason=" not in single.log()


def test_a_set_in_a_transaction_that_fails_is_undone(single: Proxy) -> None:
    with single.wire() as one, single.wire() as other:
        begin(one, "SET work_mem = '6MB'", "SELECT 1/0", "COMMIT")
        assert other.value("SHOW work_mem") == "4MB"
        assert one.value("SHOW work_mem") == "4MB"
        # The whole batch is one transaction: the error takes the SET along.
        one.send(batch("SET work_mem = '7MB'", end=b"") + batch("SELECT 1/0"))
        assert "E" in tags(one.until("Z"))
        assert other.value("SHOW work_mem") == "4MB"
        assert one.value("SHOW work_mem") == "4MB"
        assert "reason=" not in single.log()


def test_behind_a_commit_an_error_in_the_same_batch_undoes_nothing(single: Proxy) -> None:
    with single.wire() as one, single.wire() as other:
        begin(one)
        parts = ("SET work_mem = '7MB'", "COMMIT", "SELECT 1/0")
        one.send(b"".join(batch(part, end=b"") for part in parts) + sync())
        assert "E" in tags(one.until("Z"))
        assert other.value("SHOW work_mem") == "4MB"
        assert one.value("SHOW work_mem") == "7MB"


def test_what_a_rollback_to_a_savepoint_leaves_is_right(single: Proxy) -> None:
    with single.wire() as one, single.wire() as other:
        begin(one, "SET work_mem = '5MB'", "SAVEPOINT a", "SET work_mem = '6MB'")
        one.ask("ROLLBACK TO a")
        one.ask("COMMIT")
        assert one.value("SHOW work_mem") == "5MB"
        one.ask("DISCARD ALL")
        begin(one, "SAVEPOINT a", "SET work_mem = '6MB'", "RELEASE a", "COMMIT")
        assert other.value("SHOW work_mem") == "4MB"
        assert one.value("SHOW work_mem") == "6MB"


def test_the_extended_protocol_sets_as_well(single: Proxy) -> None:
    with single.wire() as one, single.wire() as other:
        one.send(batch("SET work_mem = '5MB'"))
        one.until("Z")
        assert other.value("SHOW work_mem") == "4MB"
        one.send(parse("s", "SET work_mem = '6MB'") + sync())
        one.until("Z")
        assert other.value("SHOW work_mem") == "4MB"
        assert one.value("SHOW work_mem") == "5MB"
        one.send(bind("", "s") + execute() + sync())
        one.until("Z")
        assert other.value("SHOW work_mem") == "4MB"
        assert one.value("SHOW work_mem") == "6MB"
        one.send(batch("RESET ALL"))
        one.until("Z")
        other.ask("SET work_mem = '9MB'")
        assert one.value("SHOW work_mem") == "4MB"
        assert "reason=" not in single.log()


@pytest.mark.parametrize(
    "value",
    [
        "Tenant",
        "tenant",
        "it's",
        'a "quoted" one',
        "new\nline",
        "",
        "x" * 130,
        "y" * 300,
        "z" * 4000,
        "ä€😀",
        "a, b",
    ],
    ids=lambda value: f"{value[:8]!r}-{len(value)}",
)
def test_any_value_comes_back_as_it_was(value: str, single: Proxy) -> None:
    literal = value.replace("'", "''")
    with single.wire() as one, single.wire() as other:
        one.ask(f"SET app.tenant_id = '{literal}'")
        other.ask("SET app.tenant_id = 'TENANT'")
        assert one.value("SHOW app.tenant_id") == value
        assert other.value("SELECT current_setting('app.tenant_id')") == "TENANT"
        one.ask(f"SELECT set_config('app.tenant_id', '{literal}!', false)")
        other.ask("RESET app.tenant_id")
        assert one.value("SHOW app.tenant_id") == f"{value}!"
        assert other.value("SELECT current_setting('app.tenant_id', true)") in ("", None)
        assert "reason=" not in single.log()


@pytest.mark.parametrize("path", ['"$user", public', '"A", a', "'a, b', c", "''", "pg_catalog"])
def test_lists_keep_their_quotes(path: str, single: Proxy, postgres: Postgres) -> None:
    with single.wire() as one, single.wire() as other:
        shown = postgres.sql(f"SET search_path TO {path}; SHOW search_path")[0][0]
        one.ask(f"SET search_path TO {path}")
        other.ask("SET search_path TO other")
        assert one.value("SHOW search_path") == shown
        assert "reason=" not in single.log()


def test_a_path_that_makes_tables_temporary_pins(single: Proxy) -> None:
    with single.wire() as one:
        one.ask("SET search_path TO pg_temp, public")
        single.wait_log("reason=session_variable")


@pytest.mark.parametrize("reset", ["DISCARD ALL", "RESET ALL"])
def test_a_reset_returns_to_the_beginning(reset: str, single: Proxy) -> None:
    with single.wire() as one, single.wire() as other:
        one.ask("SET work_mem = '5MB'")
        one.ask("SET app.x = '1'")
        one.ask(reset)
        other.ask("SET work_mem = '6MB'")
        assert one.value("SHOW work_mem") == "4MB"
        one.ask("SET work_mem = '5MB'")
        if reset == "RESET ALL":
            begin(one, reset, "ROLLBACK")
            other.ask("SELECT 1")
            assert one.value("SHOW work_mem") == "5MB"
            begin(one, reset, "COMMIT")
            other.ask("SELECT 1")
            assert one.value("SHOW work_mem") == "4MB"


def test_nobody_is_told_of_what_another_one_sets(single: Proxy) -> None:
    with single.wire() as one, single.wire() as other:
        told = one.ask("SET TimeZone TO 'Asia/Tokyo'")
        assert any(b"Asia/Tokyo" in got.body for got in told if got.tag == "S")
        assert "S" not in tags(other.ask("SELECT 1"))
        assert "S" not in tags(one.ask("SELECT 1"))
        assert one.value("SHOW TimeZone") == "Asia/Tokyo"
        assert other.value("SHOW TimeZone") != "Asia/Tokyo"


def test_a_statement_means_what_it_meant_under_its_own_path(
    single: Proxy, postgres: Postgres
) -> None:
    for name in ("a", "b"):
        postgres.sql(f"CREATE SCHEMA IF NOT EXISTS of_{name}")
        postgres.sql(f"CREATE TABLE IF NOT EXISTS of_{name}.t AS SELECT '{name}' AS x")
    with single.wire() as one, single.wire() as other:
        for client, name in ((one, "a"), (other, "b")):
            client.ask(f"SET search_path TO of_{name}")
            client.send(parse("s", "SELECT x FROM t") + describe("S", "s") + sync())
            client.until("Z")
        for client, name in ((one, "a"), (other, "b")) * 2:
            client.send(bind("", "s") + execute() + sync())
            rows = [row(got) for got in client.until("Z") if got.tag == "D"]
            assert rows == [[name.encode()]]


def test_a_date_means_what_it_meant_when_it_was_prepared(single: Proxy) -> None:
    """A literal becomes a constant when its statement is prepared, in the style of that moment."""
    with single.wire() as one, single.wire() as other:
        one.ask("SET DateStyle TO 'ISO, DMY'")
        other.ask("SET DateStyle TO 'ISO, MDY'")
        for client in (one, other):
            client.send(parse("s", "SELECT '01/02/2020'::date::text") + sync())
            client.until("Z")
        for client, date in ((one, b"2020-02-01"), (other, b"2020-01-02")) * 2:
            client.send(bind("", "s") + execute() + sync())
            rows = [row(got) for got in client.until("Z") if got.tag == "D"]
            assert rows == [[date]]


def test_a_killed_server_takes_nothing_along(single: Proxy, postgres: Postgres) -> None:
    with single.wire() as one, single.wire() as other:
        one.ask("SET work_mem = '5MB'")
        other.ask("SELECT 1")
        postgres.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'test' "
            "AND pid <> pg_backend_pid()"
        )
        wait_until(lambda: not single.table("servers"), "the proxy has seen the end")
        assert one.value("SHOW work_mem") == "5MB"


def test_a_client_whose_variables_cannot_be_set_again_is_ended(
    single: Proxy, postgres: Postgres
) -> None:
    postgres.sql("CREATE TEXT SEARCH CONFIGURATION fleeting (COPY = simple)")
    with single.wire() as one, single.wire() as other:
        one.ask("SET default_text_search_config TO fleeting")
        assert other.value("SELECT 1") == "1"
        postgres.sql("DROP TEXT SEARCH CONFIGURATION fleeting")
        one.send(query("SELECT 'never'"))
        (told,) = (got for got in one.until("E") if got.tag == "E")
        assert FATAL_STATE in told.fields()["M"]
        assert "fleeting" in told.fields()["D"]
        assert other.value("SHOW default_text_search_config") != "fleeting"


def test_variables_go_with_a_server_to_another_worker(postgres: Postgres, proxy: Maker) -> None:
    front = proxy(postgres, pool={"max_connections": 1}, workers=2)
    clients = [front.wire() for _ in range(8)]
    try:
        for round_ in range(3):
            for number, client in enumerate(clients):
                client.ask(f"SET app.x = 'client {number} in {round_}'")
            for number, client in enumerate(clients):
                assert client.value("SHOW app.x") == f"client {number} in {round_}"
    finally:
        for client in clients:
            client.close()
    assert "reason=" not in front.log()
