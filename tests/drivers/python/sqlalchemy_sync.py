"""SQLAlchemy over psycopg2 with its QueuePool, by the contract of `README.md`.

Next on the path: `sqlalchemy_async.py`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, text

from tests.drivers.python import contract
from tests.drivers.python.contract import Where, check_error, expect

KEEP = text("INSERT INTO kept VALUES (:tag, :part)")
FAIL = text("SELECT 1 / CAST(:zero AS int)")


@contextmanager
def pool(place: Where) -> Iterator[Engine]:
    """Make an engine whose pool has room for all clients."""
    engine = create_engine(place.url("postgresql+psycopg2"), pool_size=place.clients)
    try:
        yield engine
    finally:
        engine.dispose()


def value(connection: Connection, tag: int) -> None:
    """Check that a SELECT gives the tag."""
    expect(connection.scalar(text("SELECT CAST(:tag AS int)"), {"tag": tag}), tag)


def connect(place: Where, tag: int) -> None:
    """Use an engine and a connection of one's own."""
    engine = create_engine(place.url("postgresql+psycopg2"), poolclass=NullPool)
    with engine.connect() as connection:
        value(connection, tag)
    engine.dispose()


def prepared(engine: Engine, tag: int) -> None:
    """Repeat statements; psycopg2 puts the parameters into the text."""
    with engine.connect() as connection:
        for statement, parameter, row in contract.prepared_turns(tag, "CAST(:value AS int)"):
            got = connection.execute(text(statement), {"value": parameter}).one()
            expect(tuple(got), row)


def copy(engine: Engine, tag: int) -> None:
    """Copy rows in and out with the driver's own cursor."""
    with engine.begin() as connection:
        driver: Any = connection.connection.dbapi_connection
        with driver.cursor() as cursor:
            cursor.copy_expert(contract.COPY_IN, io.StringIO(contract.copy_text(tag)))
            out = io.StringIO()
            cursor.copy_expert(contract.copy_out(tag), out)
            expect(out.getvalue(), contract.copy_text(tag))


def keep(connection: Connection, tag: int, part: str) -> None:
    """Write a part of the tag."""
    connection.execute(KEEP, {"tag": tag, "part": part})


def transaction(engine: Engine, tag: int) -> None:
    """Commit, roll back, and roll back to a savepoint."""
    with engine.begin() as connection:
        keep(connection, tag, "committed")
    with engine.connect() as connection:
        keep(connection, tag, "rolled back")
        connection.rollback()
    with engine.begin() as connection:
        keep(connection, tag, "outer")
        nested = connection.begin_nested()
        keep(connection, tag, "inner")
        nested.rollback()
    with engine.connect() as connection:
        query = text("SELECT part FROM kept WHERE tag = :tag ORDER BY part")
        expect(tuple(connection.scalars(query, {"tag": tag})), contract.KEEP)


def error(engine: Engine, tag: int) -> None:
    """Fail as the first statement of a transaction and as a later one; go on."""
    with engine.connect() as connection:
        check_error(lambda: connection.execute(FAIL, {"zero": 0}), "22012")
        connection.rollback()
        value(connection, tag)
    with engine.connect() as connection:
        value(connection, tag)
        check_error(lambda: connection.execute(FAIL, {"zero": 0}), "22012")
        check_error(lambda: value(connection, tag), "25P02")
        connection.rollback()
        value(connection, tag)


def sleeper(engine: Engine, tag: int) -> None:
    """Be cut off by psycopg2's `cancel`."""
    with engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        with contract.cut_off(driver.cancel):
            check_error(lambda: connection.execute(text(contract.SLEEP)), "57014")
        connection.rollback()
        value(connection, tag)


def beside(engine: Engine, tag: int) -> None:
    """Work while others are cancelled."""
    for _ in range(contract.BESIDE):
        with engine.connect() as connection:
            value(connection, tag)


if __name__ == "__main__":
    contract.run_threads(
        contract.Program(
            driver="SQLAlchemy, psycopg2",
            version=f"{version('sqlalchemy')}, {version('psycopg2-binary')}",
            pool_name="QueuePool",
            pool=pool,
            connect=connect,
            prepared=prepared,
            pipeline="psycopg2 has one statement in flight a connection",
            copy=copy,
            transaction=transaction,
            error=error,
            sleeper=sleeper,
            beside=beside,
        )
    )
