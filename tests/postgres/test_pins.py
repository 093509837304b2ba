"""Pins: what keeps a server with its client, what ends that, and that nothing is left behind.

Next on the path: `test_auth.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fix_postgres import Postgres
from tests.fix_proxy import Proxy
from tests.wire import Wire, batch, bind, execute, query, sync

Maker = Callable[..., Proxy]
ASYNCPG_RESET = "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;"

# What is set by a plain SET is followed and set again instead (test_variables.py); these texts are
# not read so closely.
CAUSES = {
    "session_variable": "SET work_mem = E'17MB'",
    "role": "SET ROLE postgres",
    "set_config": "SELECT set_config('work_mem', '17' || 'MB', false)",
    "prepared_statement": "PREPARE pinned AS SELECT 1",
    "temporary_object": "CREATE TEMP TABLE pinned (x int)",
    "advisory_lock": "SELECT pg_advisory_lock(4711)",
    "hold_cursor": "DECLARE pinned CURSOR WITH HOLD FOR SELECT 1",
    "listen": "LISTEN pinned",
    "sequence": "SELECT nextval('pinned_seq')",
    "seed": "SELECT setseed(0.5)",
    "do_block": "DO $$BEGIN PERFORM set_config('work_mem', '17MB', false); END$$",
}
HARMLESS = (
    "SELECT 1",
    "BEGIN; SET LOCAL work_mem = '17MB'; COMMIT",
    "SELECT set_config('work_mem', '17MB', true)",
    "SELECT pg_advisory_xact_lock(4712)",
    'SELECT \'SET work_mem\', $$LISTEN x$$, "set" FROM (SELECT 1 AS "set") t -- LISTEN y',
    "NOTIFY pinned",
    "CREATE TABLE IF NOT EXISTS not_temp (x int)",
    "DO $$BEGIN RAISE NOTICE 'nothing'; END$$",
)
# What must be the same for each new client, whoever used the server before.
TRACES = (
    "SHOW work_mem",
    "SELECT current_user",
    "SHOW search_path",
    "SELECT count(*) FROM pg_prepared_statements",
    "SELECT count(*) FROM pg_class WHERE relname = 'pinned'",
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
    "SELECT count(*) FROM pg_cursors",
    "SELECT count(*) FROM pg_listening_channels()",
)


@pytest.fixture
def single(postgres: Postgres, proxy: Maker) -> Proxy:
    """Give a proxy with one server: whoever holds it keeps all others waiting."""
    postgres.sql("CREATE SEQUENCE IF NOT EXISTS pinned_seq")
    return proxy(postgres, pool={"max_connections": 1, "connection_borrow_timeout": "20s"})


def waits(client: Wire) -> bool:
    """Return whether a query of this client has no answer yet; it is sent here."""
    client.send(query("SELECT 'free'"))
    return client.quiet(0.3)


def traces(client: Wire) -> list[str | None]:
    """Return what a session could find of another one."""
    return [client.value(sql) for sql in TRACES]


@pytest.mark.parametrize("how", ["simple", "extended"])
@pytest.mark.parametrize("reason", CAUSES)
def test_a_statement_that_leaves_state_pins_and_leaves_nothing(
    reason: str, how: str, single: Proxy
) -> None:
    """The log names the reason, others wait, and the next client finds no trace."""
    with single.wire() as first:
        clean = traces(first)
    with single.wire() as client, single.wire() as other:
        client.send(query(CAUSES[reason]) if how == "simple" else batch(CAUSES[reason]))
        assert "E" not in [got.tag for got in client.until("Z")]
        single.wait_log(f"pinned .*reason={reason}")
        assert waits(other)
        client.close()
        other.until("Z")
        assert traces(other) == clean


@pytest.mark.parametrize("sql", HARMLESS)
def test_a_statement_that_leaves_nothing_does_not_pin(sql: str, single: Proxy) -> None:
    """The only server is free for the next client although the first stays."""
    with single.wire() as client, single.wire() as other:
        assert "E" not in [got.tag for got in client.ask(sql)]
        assert other.value("SELECT 'free'") == "free"
        assert "reason=" not in single.log()


@pytest.mark.parametrize("reset", ["DISCARD ALL", "discard all ;", ASYNCPG_RESET])
def test_a_known_reset_ends_the_pin(reset: str, single: Proxy) -> None:
    """Pool resets of drivers run on the server and give it back."""
    with single.wire() as client, single.wire() as other:
        client.ask(CAUSES["session_variable"])
        assert waits(other)
        assert "E" not in [got.tag for got in client.ask(reset)]
        other.until("Z")
        assert other.value("SHOW work_mem") == "4MB"
        assert client.value("SHOW work_mem") == "4MB"


def test_a_reset_that_removes_another_cause_does_not_end_the_pin(single: Proxy) -> None:
    """DEALLOCATE ALL does not undo a SET."""
    with single.wire() as client, single.wire() as other:
        client.ask(CAUSES["session_variable"])
        client.ask("DEALLOCATE ALL")
        assert waits(other)
        assert client.value("SHOW work_mem") == "17MB"


def test_a_pinned_client_keeps_its_state_over_transactions(single: Proxy) -> None:
    """A pin is what makes SET work for its own client."""
    with single.wire() as client:
        client.ask(CAUSES["session_variable"])
        client.ask("BEGIN")
        client.ask("COMMIT")
        assert client.value("SHOW work_mem") == "17MB"


def test_a_pinned_client_that_is_reset_leaves_a_clean_server(single: Proxy) -> None:
    """A client that vanishes in a transaction with state leaves nothing, either."""
    with single.wire() as first:
        clean = traces(first)
    client = single.wire()
    for reason in ("session_variable", "temporary_object", "advisory_lock", "listen"):
        client.ask(CAUSES[reason])
    client.ask("BEGIN")
    client.ask("INSERT INTO pinned VALUES (1)")
    client.reset()
    with single.wire() as other:
        assert traces(other) == clean


def test_prepared_names_survive_the_departure_of_a_pinned_client(single: Proxy) -> None:
    """The reset drops all statements of the server; those of living clients are made anew."""
    with single.wire() as client:
        client.send(batch("SELECT 'mine'", name="keep"))
        client.until("Z")
        with single.wire() as other:
            other.ask("SET work_mem = '17MB'")
        client.send(batch("SELECT 'again'", name="next"))
        client.until("Z")
        client.send(b"".join((_use("keep"), _use("next"))))
        assert [got.tag for got in client.until("Z", 2)] == ["2", "D", "C", "Z"] * 2


def _use(name: str) -> bytes:
    """Return a batch that runs a prepared statement."""
    return bind("", name) + execute() + sync()
