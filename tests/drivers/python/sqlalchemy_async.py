"""SQLAlchemy over asyncpg with its AsyncAdaptedQueuePool, by the contract of `README.md`.

Next on the path: `django_orm.py`.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from tests.drivers.python import contract
from tests.drivers.python.contract import Where, check_error_async, expect

KEEP = text("INSERT INTO kept VALUES (:tag, :part)")
FAIL = text("SELECT 1 / CAST(:zero AS int)")


@asynccontextmanager
async def pool(place: Where) -> AsyncIterator[AsyncEngine]:
    """Make an engine whose pool has room for all clients."""
    engine = create_async_engine(place.url("postgresql+asyncpg"), pool_size=place.clients)
    try:
        yield engine
    finally:
        await engine.dispose()


async def value(connection: AsyncConnection, tag: int) -> None:
    """Check that a SELECT gives the tag."""
    expect(await connection.scalar(text("SELECT CAST(:tag AS int)"), {"tag": tag}), tag)


async def connect(place: Where, tag: int) -> None:
    """Use an engine and a connection of one's own."""
    engine = create_async_engine(place.url("postgresql+asyncpg"), poolclass=NullPool)
    async with engine.connect() as connection:
        await value(connection, tag)
    await engine.dispose()


async def prepared(engine: AsyncEngine, tag: int) -> None:
    """Repeat statements; SQLAlchemy keeps each as a named statement of the connection."""
    async with engine.connect() as connection:
        for statement, parameter, row in contract.prepared_turns(tag, "CAST(:value AS int)"):
            got = (await connection.execute(text(statement), {"value": parameter})).one()
            expect(tuple(got), row)


async def copy(engine: AsyncEngine, tag: int) -> None:
    """Copy rows in and out with the driver's own connection."""
    async with engine.begin() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.copy_records_to_table("copied", records=contract.copy_rows(tag))
        out = io.BytesIO()
        query = contract.copy_out(tag).removeprefix("COPY (").removesuffix(") TO STDOUT")
        await driver.copy_from_query(query, output=out)
        expect(out.getvalue().decode(), contract.copy_text(tag))
    async with engine.connect() as connection:
        count = text("SELECT count(*) FROM copied WHERE tag = :tag")
        expect(await connection.scalar(count, {"tag": tag}), contract.ROWS)


async def keep(connection: AsyncConnection, tag: int, part: str) -> None:
    """Write a part of the tag."""
    await connection.execute(KEEP, {"tag": tag, "part": part})


async def transaction(engine: AsyncEngine, tag: int) -> None:
    """Commit, roll back, and roll back to a savepoint."""
    async with engine.begin() as connection:
        await keep(connection, tag, "committed")
    async with engine.connect() as connection:
        await keep(connection, tag, "rolled back")
        await connection.rollback()
    async with engine.begin() as connection:
        await keep(connection, tag, "outer")
        nested = await connection.begin_nested()
        await keep(connection, tag, "inner")
        await nested.rollback()
    async with engine.connect() as connection:
        query = text("SELECT part FROM kept WHERE tag = :tag ORDER BY part")
        expect(tuple(await connection.scalars(query, {"tag": tag})), contract.KEEP)


async def error(engine: AsyncEngine, tag: int) -> None:
    """Fail as the first statement of a transaction and as a later one; go on."""
    async with engine.connect() as connection:
        await check_error_async(connection.execute(FAIL, {"zero": 0}), "22012")
        await connection.rollback()
        await value(connection, tag)
    async with engine.connect() as connection:
        await value(connection, tag)
        await check_error_async(connection.execute(FAIL, {"zero": 0}), "22012")
        await check_error_async(value(connection, tag), "25P02")
        await connection.rollback()
        await value(connection, tag)


async def sleeper(engine: AsyncEngine, tag: int) -> None:
    """Be cut off by a time limit of asyncio; SQLAlchemy gives up the connection, not the pool."""
    async with asyncio.timeout(contract.CUT_WITHIN_S):
        try:
            async with engine.connect() as connection, asyncio.timeout(contract.CUT_AFTER_S):
                await connection.execute(text(contract.SLEEP))
        except TimeoutError:
            async with engine.connect() as connection:
                await value(connection, tag)
            return
    raise contract.WrongResultError("the statement was not cut off")


async def beside(engine: AsyncEngine, tag: int) -> None:
    """Work while others are cancelled."""
    for _ in range(contract.BESIDE):
        async with engine.connect() as connection:
            await value(connection, tag)


if __name__ == "__main__":
    asyncio.run(
        contract.run_tasks(
            contract.AsyncProgram(
                driver="SQLAlchemy, asyncpg",
                version=f"{version('sqlalchemy')}, {version('asyncpg')}",
                pool_name="AsyncAdaptedQueuePool",
                pool=pool,
                connect=connect,
                prepared=prepared,
                pipeline="asyncpg has one statement in flight a connection",
                copy=copy,
                transaction=transaction,
                error=error,
                sleeper=sleeper,
                beside=beside,
            )
        )
    )
