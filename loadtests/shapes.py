"""The shapes of load. So far the storm: short-lived clients, as a burst of small functions sends.

Each client connects, runs one transaction, stays a while without doing anything, and leaves; the
next one is another connection. Only for Locust's process. Next on the path: `locustfile.py`.
"""

from __future__ import annotations

import argparse
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

import gevent
import psycopg2
from locust import LoadTestShape, constant, task
from locust.exception import StopUser

from loadtests.comparison import WHOLE
from loadtests.schedule import Arrivals
from loadtests.users.postgres import ANSWER_S, PostgresUser, WrongRowsError

TABLE_SQL = "CREATE TABLE IF NOT EXISTS loadtest_rows (tag text PRIMARY KEY)"
"""Where each client of a storm leaves a row."""
LEAD_S = 0.5
"""Time between the first client's readiness and the first arrival: Locust makes the rest ready."""


@dataclass
class Storm:
    """One storm: its arrivals, what each client does, and how far it is."""

    arrivals: Arrivals
    clients: int
    seconds: float
    stay_s: float
    statement: str
    run: str
    ended: int = 0
    connected: int = 0
    connected_most: int = 0
    last_done_s: float = 0.0
    last_processor_s: float = 0.0
    first_processor_s: float = field(default_factory=time.process_time)

    @classmethod
    def planned(cls, options: argparse.Namespace) -> Storm:
        """Return the storm that Locust's arguments describe (see `locustfile.py`)."""
        count = round(options.rate * options.seconds)
        arrivals = Arrivals(options.rate, count, LEAD_S)
        return cls(
            arrivals,
            options.clients,
            options.seconds,
            options.stay,
            options.statement,
            secrets.token_hex(4),
        )

    def entered(self) -> None:
        """Count a client that is connected now."""
        self.connected += 1
        self.connected_most = max(self.connected_most, self.connected)

    def done(self) -> float:
        """Note that a transaction ended, and return the time of that."""
        self.last_done_s = time.perf_counter()
        self.last_processor_s = time.process_time()
        return self.last_done_s

    @property
    def over(self) -> bool:
        """Whether every client has come and gone."""
        return self.ended == self.arrivals.count

    @property
    def elapsed_s(self) -> float:
        """The time from the first intended arrival to the last transaction's end, in seconds."""
        schedule = self.arrivals.schedule
        return 0.0 if schedule is None else max(0.0, self.last_done_s - schedule.start_s)

    @property
    def busy(self) -> float:
        """The share of one core that Locust itself used; near 1, it is what is slow."""
        if self.elapsed_s == 0:
            return 0.0
        return (self.last_processor_s - self.first_processor_s) / self.elapsed_s


class StormClient(PostgresUser):
    """One client after another: each life is a connection, a transaction and a stay."""

    wait_time = constant(0)
    storm: ClassVar[Storm]

    @task
    def live(self) -> None:
        """Take the next arrival, wait for its time, live it; stop when there is none left."""
        arrival = self.storm.arrivals.take(time.perf_counter())
        if arrival is None:
            raise StopUser
        number, intended_s = arrival
        gevent.sleep(max(0.0, intended_s - time.perf_counter()))
        with suppress(psycopg2.Error, WrongRowsError):  # the request events tell of them
            self._live(f"{self.storm.run}-{number}", intended_s)
        self.storm.ended += 1

    def _live(self, tag: str, intended_s: float) -> None:
        with self.measured(WHOLE, "life", intended_s) as life:
            try:
                self.connect(intended_s)
                self.storm.entered()
                with self.measured(WHOLE, "transaction"):
                    self._transaction(tag)
                done_s = self.storm.done()
                gevent.sleep(self.storm.stay_s)
                life.left_out_s = time.perf_counter() - done_s
            finally:
                self.close()

    def _transaction(self, tag: str) -> None:
        """Write a row that is this client's alone and read it back."""
        own = [(tag,)]
        write = "INSERT INTO loadtest_rows VALUES (%s) RETURNING tag"
        read = "SELECT tag FROM loadtest_rows WHERE tag = %s"
        self.statement("BEGIN", "BEGIN")
        self.statement("INSERT", write, (tag,), expected=own)
        self.statement("SELECT", read, (tag,), expected=own)
        if self.storm.statement:
            self.statement("--statement", self.storm.statement)
        self.statement("COMMIT", "COMMIT")

    def close(self) -> None:
        """Leave, and be counted as gone."""
        if self.connection is not None:
            self.storm.connected -= 1
        super().close()


class StormShape(LoadTestShape):
    """As many clients as may be there at a time, from the start until all lives have ended."""

    def tick(self) -> tuple[int, float] | None:
        """Return the number of clients and how many to make a second; None ends the run.

        It ends when every client has left, or when the last one must have been answered.
        """
        storm = StormClient.storm
        limit_s = LEAD_S + storm.seconds + storm.stay_s + ANSWER_S
        if storm.over or time.perf_counter() - self.start_time > limit_s:
            return None
        return storm.clients, storm.clients
