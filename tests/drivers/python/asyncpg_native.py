"""asyncpg with its own pool, by the contract of `README.md`.

Next on the path: `pg8000_dbapi.py`.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import asyncpg

from tests.drivers.python import contract
from tests.drivers.python.contract import Where, check_error_async, expect


@asynccontextmanager
async def pool(place: Where) -> AsyncIterator[Any]:
    """Open a pool for all clients."""
    async with asyncpg.create_pool(place.url(), max_size=place.clients) as opened:
        yield opened


async def value(connection: Any, tag: int) -> None:
    """Check that a SELECT gives the tag."""
    expect(await connection.fetchval("SELECT $1::int", tag), tag)


async def connect(place: Where, tag: int) -> None:
    """Use a connection of one's own."""
    connection = await asyncpg.connect(place.url())
    try:
        await value(connection, tag)
    finally:
        await connection.close()


async def prepared(opened: Any, tag: int) -> None:
    """Repeat statements, which asyncpg prepares the first time, and a statement of one's own."""
    async with opened.acquire() as connection:
        for text, parameter, row in contract.prepared_turns(tag, "$1::int"):
            expect(tuple(await connection.fetchrow(text, parameter)), row)
        own = await connection.prepare("SELECT $1::int * 2")
        for turn in range(contract.TURNS):
            expect(await own.fetchval(tag + turn), 2 * (tag + turn))


async def copy(opened: Any, tag: int) -> None:
    """Copy rows in (binary) and out (text)."""
    async with opened.acquire() as connection:
        await connection.copy_records_to_table("copied", records=contract.copy_rows(tag))
        out = io.BytesIO()
        query = contract.copy_out(tag).removeprefix("COPY (").removesuffix(") TO STDOUT")
        await connection.copy_from_query(query, output=out)
        expect(out.getvalue().decode(), contract.copy_text(tag))


class UndoError(Exception):
    """Rolls a block back."""


async def keep(connection: Any, tag: int, part: str, *, undo: bool = False) -> None:
    """Write a part of the tag in a transaction, or in a savepoint if one is open."""
    try:
        async with connection.transaction():
            await connection.execute("INSERT INTO kept VALUES ($1, $2)", tag, part)
            if undo:
                raise UndoError
    except UndoError:
        pass


async def transaction(opened: Any, tag: int) -> None:
    """Commit, roll back, and roll back to a savepoint."""
    async with opened.acquire() as connection:
        await keep(connection, tag, "committed")
        await keep(connection, tag, "rolled back", undo=True)
        async with connection.transaction():
            await connection.execute("INSERT INTO kept VALUES ($1, $2)", tag, "outer")
            await keep(connection, tag, "inner", undo=True)
        rows = await connection.fetch("SELECT part FROM kept WHERE tag = $1 ORDER BY part", tag)
        expect(tuple(part for (part,) in rows), contract.KEEP)


async def error(opened: Any, tag: int) -> None:
    """Fail outside a transaction and in one; go on."""
    async with opened.acquire() as connection:
        await check_error_async(connection.fetchval("SELECT 1 / $1::int", 0), "22012")
        await value(connection, tag)

        async def in_block() -> None:
            async with connection.transaction():
                await value(connection, tag)
                await check_error_async(connection.fetchval("SELECT 1 / $1::int", 0), "22012")
                await value(connection, tag)

        await check_error_async(in_block(), "25P02")
        await value(connection, tag)


async def sleeper(opened: Any, tag: int) -> None:
    """Be cut off by the time limit of the call, which asyncpg turns into a cancel."""
    async with opened.acquire() as connection, asyncio.timeout(contract.CUT_WITHIN_S):
        try:
            await connection.execute(contract.SLEEP, timeout=contract.CUT_AFTER_S)
        except TimeoutError:
            await value(connection, tag)
            return
    raise contract.WrongResultError("the statement was not cut off")


async def beside(opened: Any, tag: int) -> None:
    """Work while others are cancelled."""
    for _ in range(contract.BESIDE):
        await value(opened, tag)


if __name__ == "__main__":
    asyncio.run(
        contract.run_tasks(
            contract.AsyncProgram(
                driver="asyncpg",
                version=version("asyncpg"),
                pool_name="asyncpg.Pool",
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
