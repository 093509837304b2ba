"""What the server itself knows of a storm: its connections meanwhile, and the rows afterwards.

It asks from a thread of its own, so that a server that stands still holds up nobody for ever. Not
here: the clients (``storm.py``). Next on the path: ``storm.py``.
"""

from __future__ import annotations

import threading

from pyproxy import exitcodes
from pyproxy.demo.postgres import USER, Postgres
from pyproxy.errors import OperatorError

EVERY_S = 0.02
"""How often the server's connections are counted."""
LAST_WORD_S = 20.0
"""How long the server may take to tell the rows."""
_COUNT_SQL = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
_ROWS_SQL = "SELECT client FROM visits WHERE storm = %s"


class Census:
    """Counts from ``start`` to ``finish``; then its figures can be read."""

    def __init__(self, server: Postgres, storm: str) -> None:
        """Count the connections of the storm's user, and at last the rows of the storm's name."""
        self.most_servers = 0
        self.rows: set[int] = set()
        self._server = server
        self._storm = storm
        self._over = threading.Event()
        self._failure: OperatorError | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Begin to count."""
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the server has gone, so that nothing more can be known."""
        return self._failure is not None

    def finish(self) -> None:
        """Ask for the rows and end; raises ``OperatorError`` (69) if the server cannot tell."""
        self._over.set()
        self._thread.join(LAST_WORD_S)
        if self._failure is not None:
            raise self._failure
        if self._thread.is_alive():
            text = f"PostgreSQL stands still: it gave no answer for {LAST_WORD_S:g} s"
            raise OperatorError(text, exitcodes.UNAVAILABLE)

    def _work(self) -> None:
        try:
            with self._server.cursor() as cursor:
                while not self._over.wait(EVERY_S):
                    cursor.execute(_COUNT_SQL, (USER,))
                    now = int((cursor.fetchone() or (0,))[0])
                    self.most_servers = max(self.most_servers, now)
                cursor.execute(_ROWS_SQL, (self._storm,))
                self.rows = {int(row[0]) for row in cursor.fetchall()}
        except OperatorError as error:
            self._failure = error
