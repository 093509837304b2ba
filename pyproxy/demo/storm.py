"""A storm of short-lived clients: each connects, runs one transaction, stays a little, and leaves.

They stay as a serverless function does that waits for its next call: connected, and idle. Clients
come at a fixed rate, whatever becomes of those before them, and a client's time counts from the
moment it was meant to come (a slow server cannot hide behind clients that wait to start); its stay
does not count. Not here: what the server knows of it (``census.py``), what is made of the figures.
Next on the path: ``verdict.py``.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyproxy import exitcodes
from pyproxy.demo.census import Census
from pyproxy.demo.postgres import Postgres
from pyproxy.errors import OperatorError

if TYPE_CHECKING:
    import psycopg2.extensions

PATIENCE_S = 20.0
"""What the last client gets beyond its stay; whoever is not gone by then has failed."""
SILENT = f"no answer in {PATIENCE_S:g} s"
MISSED = "never came: this machine cannot make clients so quickly; give them more --seconds"
_STACK_BYTES = 512 * 1024
"""Stack of a client's thread: a thousand of them must not look like a leak."""

TABLE_SQL = "CREATE TABLE visits (storm text, client int, PRIMARY KEY (storm, client))"
_VISIT_SQL = "INSERT INTO visits VALUES (%s, %s) RETURNING storm, client"


@dataclass(frozen=True)
class Life:
    """How one client fared; ``error`` is "" if it got its answer.

    ``took_s`` are the seconds from when it was meant to come until it was gone, without its stay.
    """

    took_s: float
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a storm did.

    ``confirmed`` counts the commits that clients were told of, ``kept`` those of them whose rows
    are there afterwards.
    """

    lives: list[Life]
    most_clients: int
    most_servers: int
    confirmed: int
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
        """Let ``clients`` come evenly over ``seconds`` and each stay as long again.

        So nearly all are there at a time. ``name`` marks the rows they leave.
        """
        self.name = name
        self.url = url
        self.clients = clients
        self.seconds = seconds
        self._lives: list[Life] = []
        self._confirmed: set[int] = set()
        self._came = 0
        self._unable = ""
        self._lock = threading.Lock()
        self._present = 0
        self._most_present = 0
        self._over = threading.Event()

    def run(self, server: Postgres, progress: Callable[[int], None]) -> Outcome:
        """Run it to its end; ``progress`` is told how many clients are done, ten times a second.

        ``server`` is asked what it knows. Clients that are not gone ``PATIENCE_S`` after the last
        one should be count as failed. Raises ``OperatorError`` (69) if the server or this machine
        gives out.
        """
        census = Census(server, self.name)
        census.start()
        threading.stack_size(_STACK_BYTES)
        threading.Thread(target=self._let_them_come, daemon=True).start()
        deadline = time.monotonic() + 2 * self.seconds + PATIENCE_S
        while len(self._lives) < self.clients and time.monotonic() < deadline:
            if census.failed or self._unable:
                break
            progress(len(self._lives))
            time.sleep(0.1)
        self._over.set()
        with self._lock:
            silent = [Life(PATIENCE_S, SILENT)] * (self._came - len(self._lives))
            missed = [Life(PATIENCE_S, MISSED)] * (self.clients - self._came)
            lives = [*self._lives, *silent, *missed]
            confirmed = frozenset(self._confirmed)
        if self._unable:
            raise OperatorError(self._unable, exitcodes.UNAVAILABLE)
        census.finish()
        self._see_off(time.monotonic() + PATIENCE_S)
        progress(self.clients)
        kept = len(confirmed & census.rows)
        return Outcome(lives, self._most_present, census.most_servers, len(confirmed), kept)

    def _see_off(self, deadline: float) -> None:
        """Wait until even the late ones are gone: the next storm's census would count them."""
        while self._present and time.monotonic() < deadline:
            time.sleep(0.1)

    def _let_them_come(self) -> None:
        first = time.monotonic()
        for number in range(self.clients):
            moment = first + number * self.seconds / self.clients
            time.sleep(max(0.0, moment - time.monotonic()))
            if self._over.is_set():
                return
            try:
                threading.Thread(target=self._live, args=(number, moment), daemon=True).start()
            except RuntimeError:
                text = f"this account cannot have {self._present:,} threads and one more"
                self._unable = f"{text} (ulimit -u); ask for fewer --clients"
                return

    def _live(self, number: int, moment: float) -> None:
        with self._lock:
            self._came += 1
            self._present += 1
            self._most_present = max(self._most_present, self._present)
        stayed_s, error = self._visit(number)
        took_s = time.monotonic() - moment - stayed_s
        with self._lock:
            self._present -= 1
            if not self._over.is_set():
                self._lives.append(Life(took_s, error))

    def _visit(self, number: int) -> tuple[float, str]:
        """Live one life; return how long the stay was, in seconds, and the error."""
        import psycopg2

        stayed_s = 0.0
        try:
            with closing(psycopg2.connect(self.url, connect_timeout=int(PATIENCE_S))) as connection:
                with connection, connection.cursor() as cursor:
                    cursor.execute(_VISIT_SQL, (self.name, number))
                    row = cursor.fetchone()
                with self._lock:
                    self._confirmed.add(number)
                began = time.monotonic()
                self._over.wait(self.seconds)
                stayed_s = time.monotonic() - began
                if _is_cut_off(connection):
                    return stayed_s, "cut off while it stayed"
        except psycopg2.Error as error:
            return stayed_s, _first_line(error)
        right = row == (self.name, number)
        return stayed_s, "" if right else f"got somebody else's row: {row}"


def _is_cut_off(connection: psycopg2.extensions.connection) -> bool:
    """Return whether a connection at rest has something to read: only an end comes unasked."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _first_line(error: Exception) -> str:
    """Return what the server said, without where it was reached: the table counts equal texts."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    _, said, text = line.rpartition("FATAL:")
    return text.strip() if said else line
