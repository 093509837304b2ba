"""Django over psycopg 3 with its pool option, by the contract of `README.md`.

`connect` works without the pool, as Django does unless told: a connection a request. Next on the
path: `psql.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import django
from django.conf import settings
from django.db import DatabaseError, connections, models
from django.db import transaction as transactions

from tests.drivers.python import contract
from tests.drivers.python.contract import STEPS, Where, check_error, expect, where


def database(step: str) -> dict[str, Any]:
    """Return Django's settings of a step's database."""
    place = where(step)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": place.host,
        "PORT": str(place.port),
        "USER": place.user,
        "PASSWORD": place.password,
        "NAME": place.database,
        "OPTIONS": {} if step == "connect" else {"pool": {"max_size": place.clients}},
    }


settings.configure(
    DATABASES={"default": database("connect")} | {step: database(step) for step in STEPS}
)
django.setup()


class Kept(models.Model):  # type: ignore[misc]  # Django has no types
    """A row of the table `kept`."""

    tag = models.IntegerField(primary_key=True)
    part = models.TextField()

    class Meta:
        """The table is made by the test."""

        app_label = "drivers"
        db_table = "kept"
        managed = False


@contextmanager
def pool(place: Where) -> Iterator[str]:
    """Give the name of the step's database; its pool opens with the first connection."""
    step = place.database.rpartition("_")[2]
    try:
        yield step
    finally:
        connections[step].close_pool()


@contextmanager
def request(step: str) -> Iterator[Any]:
    """Give this thread's connection and close it, which returns it to the pool, as a request."""
    connection = connections[step]
    try:
        yield connection
    finally:
        connection.close()


def value(connection: Any, tag: int) -> None:
    """Check that a SELECT gives the tag."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::int", (tag,))
        expect(cursor.fetchone(), (tag,))


def connect(place: Where, tag: int) -> None:
    """Use a connection of one's own."""
    with request("connect") as connection:
        value(connection, tag)
        expect(connection.settings_dict["NAME"], place.database)


def prepared(step: str, tag: int) -> None:
    """Repeat statements; Django has psycopg put the parameters into the text."""
    with request(step) as connection, connection.cursor() as cursor:
        for text, parameter, row in contract.prepared_turns(tag, "%s::int"):
            cursor.execute(text, (parameter,))
            expect(cursor.fetchone(), row)


def copy(step: str, tag: int) -> None:
    """Copy rows in and out with the cursor of psycopg."""
    with request(step) as connection, connection.cursor() as cursor:
        with cursor.copy(contract.COPY_IN) as into:
            for row in contract.copy_rows(tag):
                into.write_row(row)
        with cursor.copy(contract.copy_out(tag)) as out:
            expect(b"".join(bytes(part) for part in out).decode(), contract.copy_text(tag))


class UndoError(Exception):
    """Rolls a block back."""


def keep(step: str, tag: int, part: str, *, undo: bool = False) -> None:
    """Write a part of the tag in a transaction, or in a savepoint if one is open."""
    try:
        with transactions.atomic(using=step):
            Kept.objects.using(step).bulk_create([Kept(tag=tag, part=part)])
            if undo:
                raise UndoError
    except UndoError:
        pass


def transaction(step: str, tag: int) -> None:
    """Commit, roll back, and roll back to a savepoint."""
    with request(step):
        keep(step, tag, "committed")
        keep(step, tag, "rolled back", undo=True)
        with transactions.atomic(using=step):
            keep(step, tag, "outer")
            keep(step, tag, "inner", undo=True)
        rows = Kept.objects.using(step).filter(tag=tag).order_by("part")
        expect(tuple(rows.values_list("part", flat=True)), contract.KEEP)


def error(step: str, tag: int) -> None:
    """Fail with autocommit and in a transaction; go on."""

    def fail(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 / %s::int", (0,))

    with request(step) as connection:
        check_error(lambda: fail(connection), "22012")
        value(connection, tag)

        def in_block() -> None:
            with transactions.atomic(using=step):
                value(connection, tag)
                fail(connection)

        check_error(in_block, "22012")
        value(connection, tag)


def sleeper(step: str, tag: int) -> None:
    """Be cut off by psycopg's cancel: Django has no way of its own."""
    with request(step) as connection:
        connection.ensure_connection()
        with contract.cut_off(connection.connection.cancel_safe), connection.cursor() as cursor:
            try:
                cursor.execute(contract.SLEEP)
            except DatabaseError as cut:
                expect(contract.sqlstate_of(cut), "57014")
            else:
                raise contract.WrongResultError("the statement was not cut off")
        value(connection, tag)


def beside(step: str, tag: int) -> None:
    """Work while others are cancelled."""
    for _ in range(contract.BESIDE):
        with request(step) as connection:
            value(connection, tag)


if __name__ == "__main__":
    contract.run_threads(
        contract.Program(
            driver="Django",
            version=f"{version('django')}, {version('psycopg')}",
            pool_name=f"psycopg_pool {version('psycopg-pool')}",
            pool=pool,
            connect=connect,
            prepared=prepared,
            pipeline="Django has one statement in flight a connection",
            copy=copy,
            transaction=transaction,
            error=error,
            sleeper=sleeper,
            beside=beside,
        )
    )
