"""pg8000 with SQLAlchemy's QueuePool (it has none of its own), by the contract of `README.md`.

Next on the path: `sqlalchemy_sync.py`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from typing import Any

import pg8000.dbapi
import pg8000.native
from sqlalchemy.pool import QueuePool

from tests.drivers.python import contract
from tests.drivers.python.contract import Where, check_error, expect


def login(place: Where) -> dict[str, Any]:
    """Return what both interfaces of pg8000 connect with."""
    return {
        "host": place.host,
        "port": place.port,
        "user": place.user,
        "password": place.password,
        "database": place.database,
    }


@contextmanager
def pool(place: Where) -> Iterator[QueuePool]:
    """Open a pool for all clients."""
    opened = QueuePool(lambda: pg8000.dbapi.connect(**login(place)), pool_size=place.clients)
    try:
        yield opened
    finally:
        opened.dispose()


def rows(connection: Any, text: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run a statement and return its rows."""
    cursor = connection.cursor()
    cursor.execute(text, parameters)
    return [tuple(row) for row in cursor.fetchall()]


def run(connection: Any, text: str, *parameters: Any) -> None:
    """Run a statement without rows."""
    connection.cursor().execute(text, parameters)


def value(connection: Any, tag: int) -> None:
    """Check that a SELECT gives the tag."""
    expect(rows(connection, "SELECT %s::int", tag), [(tag,)])


def connect(place: Where, tag: int) -> None:
    """Use a connection of one's own."""
    with closing(pg8000.dbapi.connect(**login(place))) as connection:
        value(connection, tag)


def prepared(opened: QueuePool, tag: int) -> None:
    """Repeat statements: unnamed ones of the DB-API, a named one of the native interface."""
    with closing(opened.connect()) as connection:
        for text, parameter, row in contract.prepared_turns(tag, "%s::int"):
            expect(rows(connection, text, parameter), [row])
        named = pg8000.native.PreparedStatement(
            connection.dbapi_connection, "SELECT CAST(:value AS int) * 2"
        )
        for turn in range(contract.TURNS):
            expect(named.run(value=tag + turn), [[2 * (tag + turn)]])
        named.close()


def copy(opened: QueuePool, tag: int) -> None:
    """Copy rows in and out through streams."""
    with closing(opened.connect()) as connection:
        cursor: Any = connection.cursor()
        into = io.BytesIO(contract.copy_text(tag).encode())
        cursor.execute(contract.COPY_IN, stream=into)
        out = io.BytesIO()
        cursor.execute(contract.copy_out(tag), stream=out)
        expect(out.getvalue().decode(), contract.copy_text(tag))
        connection.commit()


def keep(connection: Any, tag: int, part: str) -> None:
    """Write a part of the tag."""
    run(connection, "INSERT INTO kept VALUES (%s, %s)", tag, part)


def transaction(opened: QueuePool, tag: int) -> None:
    """Commit, roll back, and roll back to a savepoint."""
    with closing(opened.connect()) as connection:
        keep(connection, tag, "committed")
        connection.commit()
        keep(connection, tag, "rolled back")
        connection.rollback()
        keep(connection, tag, "outer")
        run(connection, "SAVEPOINT here")
        keep(connection, tag, "inner")
        run(connection, "ROLLBACK TO SAVEPOINT here")
        connection.commit()
        kept = rows(connection, "SELECT part FROM kept WHERE tag = %s ORDER BY part", tag)
        expect(tuple(part for (part,) in kept), contract.KEEP)


def error(opened: QueuePool, tag: int) -> None:
    """Fail with autocommit and in a transaction; go on."""
    with closing(opened.connect()) as connection:
        driver: Any = connection.dbapi_connection
        driver.autocommit = True
        check_error(lambda: rows(connection, "SELECT 1 / %s::int", 0), "22012")
        value(connection, tag)
        driver.autocommit = False
        value(connection, tag)
        check_error(lambda: rows(connection, "SELECT 1 / %s::int", 0), "22012")
        check_error(lambda: value(connection, tag), "25P02")
        connection.rollback()
        value(connection, tag)


NO_CANCEL = "pg8000 cannot cancel; its only time limit is the socket's, which ends the connection"

if __name__ == "__main__":
    contract.run_threads(
        contract.Program(
            driver="pg8000",
            version=version("pg8000"),
            pool_name=f"SQLAlchemy QueuePool {version('sqlalchemy')}",
            pool=pool,
            connect=connect,
            prepared=prepared,
            pipeline="pg8000 has one statement in flight a connection",
            copy=copy,
            transaction=transaction,
            error=error,
            sleeper=NO_CANCEL,
            beside=NO_CANCEL,
        )
    )
