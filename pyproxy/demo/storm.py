"""A storm of short-lived clients: each connects, runs one transaction, and leaves.

Clients come at a fixed rate, whatever becomes of those before them, and a client's time counts from
the moment it was meant to come: a slow server cannot hide behind clients that wait to start. Not
here: what is made of the figures (``verdict.py``). Next on the path: ``verdict.py``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from pyproxy.demo.postgres import Postgres

PATIENCE_S = 20.0
"""What the last client gets after it came; whoever has no answer by then has failed."""
CENSUS_S = 0.02
"""How often the server's connections are counted."""
_STACK_BYTES = 512 * 1024
"""Stack of a client's thread: a thousand of them must not look like a leak."""

TABLE_SQL = "CREATE TABLE visits (storm text, client int, PRIMARY KEY (storm, client))"
_VISIT_SQL = "INSERT INTO visits VALUES (%s, %s) RETURNING storm, client"
_CENSUS_SQL = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
_KEPT_SQL = "SELECT count(*) FROM visits WHERE storm = %s"


@dataclass(frozen=True)
class Life:
    """How one client fared: seconds from when it was meant to come; its error, "" if none."""

    took_s: float
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a storm did; ``kept`` counts the rows that are there afterwards."""

    lives: list[Life]
    most_clients: int
    most_servers: int
    kept: int

    @property
    def answered(self) -> list[float]:
        """The seconds that each client took that got its answer, shortest first."""
        return sorted(life.took_s for life in self.lives if not life.error)

    @property
    def errors(self) -> list[str]:
        """What the others were told."""
        return [life.error for life in self.lives if life.error]


class Storm:
    """One storm against one address; ``run`` it once."""

    def __init__(self, name: str, url: str, clients: int, seconds: float) -> None:
        """Let ``clients`` come evenly over ``seconds``; ``name`` marks the rows they leave."""
        self.name = name
        self.url = url
        self.clients = clients
        self.gap_s = seconds / clients
        self._lives: list[Life] = []
        self._lock = threading.Lock()
        self._present = 0
        self._most_present = 0
        self._over = threading.Event()

    def run(self, server: Postgres, user: str, progress: Callable[[int], None]) -> Outcome:
        """Run it to its end; ``progress`` is told how many clients are done, ten times a second.

        ``server`` is asked how many connections ``user`` has, and for the rows afterwards. Clients
        that have no answer ``PATIENCE_S`` after the last one came count as failed.
        """
        census: list[int] = [0]
        counting = threading.Thread(target=self._count, args=(server, user, census), daemon=True)
        counting.start()
        threading.stack_size(_STACK_BYTES)
        threading.Thread(target=self._let_them_come, daemon=True).start()
        deadline = time.monotonic() + self.gap_s * self.clients + PATIENCE_S
        while len(self._lives) < self.clients and time.monotonic() < deadline:
            progress(len(self._lives))
            time.sleep(0.1)
        self._over.set()
        counting.join()
        with self._lock:
            silent = self.clients - len(self._lives)
            lives = [*self._lives, *[Life(PATIENCE_S, f"no answer in {PATIENCE_S:g} s")] * silent]
        progress(self.clients)
        with closing(server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(_KEPT_SQL, (self.name,))
            kept = int((cursor.fetchone() or (0,))[0])
        return Outcome(lives, self._most_present, max(census), kept)

    def _let_them_come(self) -> None:
        first = time.monotonic()
        for number in range(self.clients):
            moment = first + number * self.gap_s
            time.sleep(max(0.0, moment - time.monotonic()))
            if self._over.is_set():
                return
            threading.Thread(target=self._live, args=(number, moment), daemon=True).start()

    def _live(self, number: int, moment: float) -> None:
        with self._lock:
            self._present += 1
            self._most_present = max(self._most_present, self._present)
        error = self._visit(number)
        took_s = time.monotonic() - moment
        with self._lock:
            self._present -= 1
            if not self._over.is_set():
                self._lives.append(Life(took_s, error))

    def _visit(self, number: int) -> str:
        """Connect, leave a row and read it back in a transaction, close; return the error."""
        import psycopg2

        try:
            with (
                closing(psycopg2.connect(self.url, connect_timeout=int(PATIENCE_S))) as connection,
                connection,
                connection.cursor() as cursor,
            ):
                cursor.execute(_VISIT_SQL, (self.name, number))
                row = cursor.fetchone()
        except psycopg2.Error as error:
            return _first_line(error)
        return "" if row == (self.name, number) else f"got somebody else's row: {row}"

    def _count(self, server: Postgres, user: str, census: list[int]) -> None:
        with closing(server.connect()) as connection, connection.cursor() as cursor:
            while not self._over.wait(CENSUS_S):
                cursor.execute(_CENSUS_SQL, (user,))
                census.append(int((cursor.fetchone() or (0,))[0]))


def _first_line(error: Exception) -> str:
    """Return what the server said, without where it was reached: the table counts equal texts."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    _, said, text = line.rpartition("FATAL:")
    return text.strip() if said else line
