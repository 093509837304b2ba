"""psycopg 3 with psycopg_pool, by the contract of `README.md`.

Next on the path: `asyncpg_native.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from tests.drivers.python import contract
from tests.drivers.python.contract import Where, check_error, expect

Pool = ConnectionPool[psycopg.Connection[Any]]


@contextmanager
def pool(place: Where) -> Iterator[Pool]:
    """Open a pool for all clients."""
    with ConnectionPool(place.url(), max_size=place.clients, open=True) as opened:
        yield opened


def value(connection: psycopg.Connection[Any], tag: int) -> None:
    """Check that a SELECT gives the tag."""
    expect(connection.execute("SELECT %s", (tag,)).fetchone(), (tag,))


def connect(place: Where, tag: int) -> None:
    """Use a connection of one's own."""
    with psycopg.connect(place.url()) as connection:
        value(connection, tag)


def prepared(opened: Pool, tag: int) -> None:
    """Repeat statements; psycopg prepares them from the sixth time on."""
    with opened.connection() as connection:
        for text, parameter, row in contract.prepared_turns(tag, "%s::int"):
            expect(connection.execute(text.encode(), (parameter,)).fetchone(), row)
            value(connection, tag)
        for text, parameter, row in contract.prepared_turns(tag, "%s::int + 0"):
            cursor = connection.execute(text.encode(), (parameter,), prepare=True)
            expect(cursor.fetchone(), row)


def pipeline(opened: Pool, tag: int) -> None:
    """Send statements before the first result is read."""
    with opened.connection() as connection:
        wanted = [tag * 100 + n for n in range(contract.STATEMENTS)]
        with connection.pipeline():
            cursors = [connection.execute("SELECT %s::int", (number,)) for number in wanted]
            expect([cursor.fetchone() for cursor in cursors], [(number,) for number in wanted])


def copy(opened: Pool, tag: int) -> None:
    """Copy rows in and out."""
    with opened.connection() as connection, connection.cursor() as cursor:
        with cursor.copy(contract.COPY_IN) as into:
            for row in contract.copy_rows(tag):
                into.write_row(row)
        with cursor.copy(contract.copy_out(tag).encode()) as out:
            expect(b"".join(bytes(part) for part in out).decode(), contract.copy_text(tag))


def keep(connection: psycopg.Connection[Any], tag: int, part: str) -> None:
    """Write a part of the tag."""
    connection.execute("INSERT INTO kept VALUES (%s, %s)", (tag, part))


def transaction(opened: Pool, tag: int) -> None:
    """Commit, roll back, and roll back to a savepoint."""
    with opened.connection() as connection:
        with connection.transaction():
            keep(connection, tag, "committed")
        with connection.transaction(force_rollback=True):
            keep(connection, tag, "rolled back")
        with connection.transaction():
            keep(connection, tag, "outer")
            with connection.transaction(force_rollback=True):
                keep(connection, tag, "inner")
        rows = connection.execute("SELECT part FROM kept WHERE tag = %s ORDER BY part", (tag,))
        expect(tuple(part for (part,) in rows), contract.KEEP)


def error(opened: Pool, tag: int) -> None:
    """Fail outside a transaction and in one; go on."""

    def fail(connection: psycopg.Connection[Any]) -> None:
        connection.execute("SELECT 1 / %s::int", (0,))

    with opened.connection() as connection:
        check_error(lambda: fail(connection), "22012")
        check_error(lambda: value(connection, tag), "25P02")
        connection.rollback()
        value(connection, tag)
        connection.rollback()

        def in_block() -> None:
            with connection.transaction():
                value(connection, tag)
                fail(connection)

        check_error(in_block, "22012")
        value(connection, tag)


def sleeper(opened: Pool, tag: int) -> None:
    """Be cut off by `Connection.cancel_safe`."""
    with opened.connection() as connection:
        with contract.cut_off(connection.cancel_safe):
            check_error(lambda: connection.execute(contract.SLEEP), "57014")
        connection.rollback()
        value(connection, tag)


def beside(opened: Pool, tag: int) -> None:
    """Work while others are cancelled."""
    for _ in range(contract.BESIDE):
        with opened.connection() as connection:
            value(connection, tag)


if __name__ == "__main__":
    contract.run_threads(
        contract.Program(
            driver="psycopg 3",
            version=version("psycopg"),
            pool_name=f"psycopg_pool {version('psycopg-pool')}",
            pool=pool,
            connect=connect,
            prepared=prepared,
            pipeline=pipeline,
            copy=copy,
            transaction=transaction,
            error=error,
            sleeper=sleeper,
            beside=beside,
        )
    )
