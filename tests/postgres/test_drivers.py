"""Real drivers through the proxy: psycopg2, asyncpg and psycopg 3, quiet and with noise.

The noise clients keep the few servers changing hands. Next on the path: `test_tagged_rows.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import psycopg2
import psycopg2.extras
import pytest

from tests.fix_postgres import PASSWORDS, Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.postgres.load import noise, run_clients, sampled

SERVERS = 5
APP = "usename IN ('app', 'guest')"


@pytest.fixture(scope="module")
def front(module_proxy: Callable[..., Proxy], postgres: Postgres) -> Proxy:
    """Give a proxy with five servers for all drivers."""
    postgres.sql("DROP TABLE IF EXISTS items; CREATE TABLE items (id int, name text)")
    postgres.sql("GRANT ALL ON items TO PUBLIC")
    return module_proxy(postgres, pool={"max_connections": SERVERS})


@pytest.fixture(params=["quiet", "noise"])
def busy(request: pytest.FixtureRequest, front: Proxy, postgres: Postgres) -> Iterator[Proxy]:
    """Give the proxy alone or with noise; the server count never passes the budget."""
    postgres.sql("TRUNCATE items")
    disturbed = noise(front, "app") if request.param == "noise" else contextlib.nullcontext()
    with sampled(postgres, APP) as peak, disturbed:
        yield front
    assert peak.most <= SERVERS


@asynccontextmanager
async def anpg(front: Proxy, **more: Any) -> AsyncIterator[Any]:
    """Open an asyncpg connection and close it."""
    connection = await asyncpg.connect(
        host=front.host,
        port=front.port,
        user="app",
        password=PASSWORDS["app"],
        database="test",
        ssl=False,
        **more,
    )
    try:
        yield connection
    finally:
        await connection.close(timeout=10)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine with a deadline."""
    asyncio.run(asyncio.wait_for(work, 60))


def test_psycopg2_queries_and_parameters(busy: Proxy) -> None:
    """Client-side parameters, several types, autocommit and not."""
    with busy.connect("app") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT %s::int, %s, %s::numeric", (1, "O'Neil", "1.50"))
        assert [str(value) for value in cursor.fetchone() or ()] == ["1", "O'Neil", "1.50"]
        connection.commit()


def test_psycopg2_transaction_rollback_and_error(busy: Proxy) -> None:
    """A failed transaction is rolled back, and nothing of it stays."""
    with busy.connect("app") as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO items VALUES (1, 'kept')")
        connection.commit()
        cursor.execute("INSERT INTO items VALUES (2, 'lost')")
        with pytest.raises(psycopg2.errors.DivisionByZero):
            cursor.execute("SELECT 1/0")
        with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
            cursor.execute("SELECT 1")
        connection.rollback()
        cursor.execute("SELECT id, name FROM items")
        assert cursor.fetchall() == [(1, "kept")]
        connection.commit()


def test_psycopg2_named_cursor_and_copy(busy: Proxy) -> None:
    """A server-side cursor inside a transaction, COPY in and out."""
    with busy.connect("app") as connection:
        with connection.cursor() as cursor:
            rows = "".join(f"{n}\tname{n}\n" for n in range(3000))
            cursor.copy_expert("COPY items FROM STDIN", io.StringIO(rows))
            out = io.StringIO()
            cursor.copy_expert("COPY (SELECT * FROM items ORDER BY id) TO STDOUT", out)
            assert out.getvalue() == rows
        with connection.cursor("walk") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT id FROM items ORDER BY id")
            assert [number for (number,) in cursor] == [*range(3000)]
        connection.rollback()


def test_psycopg2_cancel(busy: Proxy, postgres: Postgres) -> None:
    """`connection.cancel()` from another thread ends the query of this connection only."""
    with busy.connect("app") as connection, connection.cursor() as cursor:
        asleep = "query = 'SELECT pg_sleep(60), 2'"

        def cancel() -> None:
            wait_until(
                lambda: postgres.backends(f"state = 'active' AND {asleep}"), "the query runs"
            )
            connection.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(psycopg2.errors.QueryCanceled):
            cursor.execute("SELECT pg_sleep(60), 2")
        thread.join()
        connection.rollback()
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
        connection.commit()


def test_asyncpg_prepared_statements(busy: Proxy) -> None:
    """Its automatic cache of named statements, and explicit ones, over transactions."""

    async def work() -> None:
        async with anpg(busy) as connection:
            for turn in range(30):
                assert await connection.fetchval("SELECT $1::int + 1", turn) == turn + 1
            statement = await connection.prepare("SELECT $1::text || $2::text")
            for turn in range(30):
                assert await statement.fetchval("t", str(turn)) == f"t{turn}"
            await connection.executemany("INSERT INTO items VALUES ($1, $2)", [(1, "a"), (2, "b")])
            assert await connection.fetchval("SELECT count(*) FROM items") == 2

    run(work())


def test_asyncpg_transactions_cursor_and_error(busy: Proxy) -> None:
    """Nested transactions are savepoints; a cursor fetches with max_rows."""

    async def work() -> None:
        async with anpg(busy) as connection:
            async with connection.transaction():
                await connection.execute("INSERT INTO items VALUES (1, 'outer')")

                async def inner() -> None:
                    async with connection.transaction():
                        await connection.execute("INSERT INTO items VALUES (2, 'inner')")
                        await connection.fetch("SELECT 1/$1::int", 0)

                with pytest.raises(asyncpg.DivisionByZeroError):
                    await inner()
                seen = [r[0] async for r in connection.cursor("SELECT generate_series(1, 200)")]
                assert seen == [*range(1, 201)]
            assert [tuple(r) for r in await connection.fetch("SELECT * FROM items")] == [
                (1, "outer")
            ]

    run(work())


def test_asyncpg_copy(busy: Proxy) -> None:
    """Binary COPY in and text COPY out."""

    async def work() -> None:
        async with anpg(busy) as connection:
            rows = [(n, f"name{n}") for n in range(2000)]
            await connection.copy_records_to_table("items", records=rows)
            out = io.BytesIO()
            await connection.copy_from_query("SELECT * FROM items ORDER BY id", output=out)
            assert out.getvalue().decode() == "".join(f"{n}\t{name}\n" for n, name in rows)

    run(work())


def test_asyncpg_cancel_by_timeout(busy: Proxy) -> None:
    """A query that times out is cancelled on the server, and the connection goes on."""

    async def work() -> None:
        async with anpg(busy) as connection:
            with pytest.raises(TimeoutError):
                await connection.fetch("SELECT pg_sleep(60)", timeout=0.3)
            assert await connection.fetchval("SELECT 1") == 1

    run(work())


def test_asyncpg_pool_resets_do_not_hold_servers(busy: Proxy) -> None:
    """Twenty pooled connections that are reset after each use share five servers."""

    async def work() -> None:
        pool = await asyncpg.create_pool(busy.dsn("app"), min_size=20, max_size=20)
        async with pool:

            async def use(number: int) -> None:
                async with pool.acquire() as connection:
                    await connection.execute(f"SET work_mem = '{number + 1}MB'")
                    shown = await connection.fetchval("SELECT current_setting('work_mem')")
                    assert shown == f"{number + 1}MB"

            await asyncio.gather(*(use(number) for number in range(60)))

    run(work())


def test_psycopg3_pipeline_mode(busy: Proxy) -> None:
    """Many statements in flight, with an error in the middle that spares the other batches."""
    with psycopg.connect(busy.dsn("app"), autocommit=True) as connection:
        with connection.pipeline():
            cursors = [connection.execute("SELECT %s::int", (n,)) for n in range(50)]
            assert [(c.fetchone() or (None,))[0] for c in cursors] == [*range(50)]

        def failing() -> None:
            with connection.pipeline() as pipeline:
                connection.execute("SELECT 1/%s::int", (0,))
                pipeline.sync()

        with pytest.raises(psycopg.errors.DivisionByZero):
            failing()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_psycopg3_prepares_and_deallocates(busy: Proxy) -> None:
    """Its prepared statements (threshold 0) and their eviction by DEALLOCATE or Close."""
    with psycopg.connect(busy.dsn("app"), autocommit=True, prepare_threshold=0) as connection:
        connection.prepared_max = 5
        for n in range(40):
            query = f"SELECT %s::int + {n % 10}"
            assert connection.execute(query.encode(), (1,)).fetchone() == (1 + n % 10,)


def test_200_psycopg2_clients_on_5_servers(busy: Proxy) -> None:
    """Everybody is served, with its own results."""

    def work(number: int) -> None:
        connection = psycopg2.connect(busy.dsn("app"))
        try:
            for turn in range(5):
                with connection.cursor() as cursor:
                    cursor.execute("SELECT %s, %s FROM pg_sleep(0.001)", (number, turn))
                    assert cursor.fetchone() == (number, turn)
                connection.commit()
        finally:
            connection.close()

    run_clients(200, work)


def test_200_asyncpg_clients_on_5_servers(busy: Proxy) -> None:
    """Everybody is served, with its own results, over prepared statements of one text."""

    async def client(number: int) -> None:
        async with anpg(busy) as connection:
            for turn in range(5):
                got = await connection.fetchrow("SELECT $1::int, $2::int", number, turn)
                assert tuple(got) == (number, turn)

    async def work() -> None:
        await asyncio.gather(*(client(number) for number in range(200)))

    run(work())
