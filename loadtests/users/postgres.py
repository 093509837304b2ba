"""A Locust user that speaks PostgreSQL: psycopg2 made cooperative, one request event a statement.

Only for Locust's process: importing Locust patches the standard library for gevent. What a client
does, and when, is not decided here. Next on the path: `../shapes.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import psycopg2.extensions
from gevent import socket as gevent_socket
from locust import User

from loadtests.schedule import Timing

ANSWER_S = 30.0
"""How long a login or a statement may take, in seconds, before it is a failure."""

CONNECT = "connect"
"""Kind of the request events of logins."""
SQL = "SQL"
"""Kind of the request events of statements."""


class WrongRowsError(Exception):
    """The server answered with rows that are not this client's own."""


def make_cooperative() -> None:
    """Let psycopg2 give way to other greenlets while it waits: it would stop all of them."""
    psycopg2.extensions.set_wait_callback(_wait)


def _wait(connection: psycopg2.extensions.connection) -> None:
    """Wait until a connection has done what it was asked; raise if that takes too long."""
    deadline_s = time.perf_counter() + ANSWER_S
    late = psycopg2.OperationalError(f"no answer within {ANSWER_S:g} s")
    while True:
        state = connection.poll()
        if state == psycopg2.extensions.POLL_OK:
            return
        left_s = deadline_s - time.perf_counter()
        if left_s <= 0:
            raise late
        if state == psycopg2.extensions.POLL_READ:
            gevent_socket.wait_read(connection.fileno(), left_s, late)
        elif state == psycopg2.extensions.POLL_WRITE:
            gevent_socket.wait_write(connection.fileno(), left_s, late)
        else:
            raise psycopg2.OperationalError(f"psycopg2 is in an unknown state: {state}")


class Measuring:
    """One request under way, for its client to say what belongs to it."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.length = 0
        self.left_out_s = 0.0


class PostgresUser(User):
    """A client of the server that libpq's environment names (`PGHOST`, `PGPORT`, `PGUSER`, …)."""

    abstract = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Begin without a connection."""
        super().__init__(*arguments, **named)
        self.connection: psycopg2.extensions.connection | None = None

    @contextmanager
    def measured(
        self, kind: str, name: str, intended_s: float | None = None
    ) -> Iterator[Measuring]:
        """Fire one request event for what the block does, a failure if it raises.

        `intended_s` is when it was meant to begin, on `time.perf_counter`; now, unless given. What
        raises is raised on. A client that Locust stops in the middle fires nothing.
        """
        begun_s = time.perf_counter()
        measuring = Measuring()

        def fire(error: Exception | None) -> None:
            due_s = begun_s if intended_s is None else intended_s
            timing = Timing(due_s, begun_s, time.perf_counter(), measuring.left_out_s)
            self.environment.events.request.fire(
                request_type=kind,
                name=name,
                response_time=timing.latency_ms,
                response_length=measuring.length,
                exception=error,
                context={"service_ms": timing.service_ms},
            )

        try:
            yield measuring
        except Exception as error:
            fire(error)
            raise
        fire(None)

    def connect(self, intended_s: float | None = None) -> None:
        """Log in, each statement its own transaction; raises `psycopg2.OperationalError`."""
        with self.measured(CONNECT, "connect", intended_s):
            self.connection = psycopg2.connect("", application_name="loadtests")
            self.connection.autocommit = True

    def statement(
        self,
        name: str,
        text: str,
        values: tuple[Any, ...] | None = None,
        expected: list[tuple[Any, ...]] | None = None,
    ) -> None:
        """Run one statement, and check its rows if any are `expected`.

        `name` is what reports call it. The event's length is that of all values as text. Raises
        `psycopg2.Error`, and `WrongRowsError` if other rows came.
        """
        if self.connection is None:
            raise psycopg2.InterfaceError("not connected")
        with self.measured(SQL, name) as measuring, self.connection.cursor() as cursor:
            cursor.execute(text, values)
            rows = cursor.fetchall() if cursor.description else []
            measuring.length = sum(len(str(value)) for row in rows for value in row)
            if expected is not None and rows != expected:
                raise WrongRowsError(f"{name}: {expected} was due, {rows} came")

    def close(self) -> None:
        """Leave, if it is connected. Nobody answers this, so it has no event of its own."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def on_stop(self) -> None:
        """Leave when Locust stops this client."""
        self.close()
