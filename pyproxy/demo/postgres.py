"""A PostgreSQL server of our own: made in a scratch folder, started on a free port, stopped.

It keeps nothing beyond its folder and is made for trials: it does not wait for the disk. Not here:
who uses it. Next on the path: ``service.py``.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pyproxy import exitcodes
from pyproxy.demo.binaries import find_binaries, server_account
from pyproxy.demo.children import Child, free_port, tail
from pyproxy.errors import OperatorError

if TYPE_CHECKING:
    import psycopg2.extensions

START_S = 30.0
"""How long a server may take until it accepts, and ``initdb`` until it is done."""
STOP_S = 10.0
"""How long it may take to end before it is killed."""
USER = "demo"
"""Name of the database, and of the only account that is let in by password."""

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "logging_collector": "off",
}
_HBA = f"""\
local all postgres trust
host all {USER} 127.0.0.1/32 scram-sha-256
"""


class Postgres:
    """One server on 127.0.0.1 with the database ``demo`` and a user of that name.

    Its superuser ``postgres`` is let in through the Unix socket only, which lies in a folder that
    only this account and the server's can enter.
    """

    host = "127.0.0.1"

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        """Find the programs; ``folder`` exists and takes all files, ``settings`` are the server's.

        Raises ``OperatorError`` (69) if there is no PostgreSQL on this machine.
        """
        self.folder = folder
        self.binaries = find_binaries(folder, os.environ)
        self.settings = _SETTINGS | dict(settings or {})
        self.password = secrets.token_hex(8)
        self.port = 0
        self._data = folder / "data"
        self._child: Child | None = None

    @property
    def version(self) -> str:
        """The server's version, such as ``15.18``."""
        told = subprocess.run(  # noqa: S603 - a program that was looked for
            [str(self.binaries / "postgres"), "--version"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        found = re.search(r"\d[\w.]*", told)
        return found[0] if found else told.strip()

    @property
    def url(self) -> str:
        """How a client reaches it, past the proxy."""
        return f"postgresql://{USER}:{self.password}@{self.host}:{self.port}/{USER}"

    @property
    def log_path(self) -> Path:
        """Where the server writes its log."""
        return self.folder / "postgres.log"

    def start(self) -> None:
        """Make the server, start it on a free port and wait until it accepts.

        Raises ``OperatorError`` (69), with the end of its log, if it does not come up.
        """
        account = server_account()
        if account:
            os.chown(self.folder, account["user"], account["group"])
        self._initialise()
        self.port = free_port()
        given = self.settings | {"unix_socket_directories": str(self.folder)}
        command = [str(self.binaries / "postgres"), "-D", str(self._data), f"-p{self.port}"]
        command += [f"-c{name}={value}" for name, value in given.items()]
        self._child = Child("PostgreSQL", command, self.folder, self.log_path, **account)
        self._child.wait_until(self._accepts, START_S)
        with self.cursor("postgres") as cursor:
            cursor.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{self.password}'")
            cursor.execute(f"CREATE DATABASE {USER} OWNER {USER}")

    def _initialise(self) -> None:
        command = [str(self.binaries / "initdb"), "-D", str(self._data), "-U", "postgres"]
        command += ["-A", "trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
        initdb = Child("initdb", command, self.folder, self.log_path, **server_account())
        self._child = initdb
        initdb.wait_until(lambda: initdb.process.poll() == 0, START_S)
        (self._data / "pg_hba.conf").write_text(_HBA)

    def _accepts(self) -> bool:
        """Read the state that the server keeps in the last line of its pid file."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready"

    def connect(self, database: str = USER) -> psycopg2.extensions.connection:
        """Log in as superuser with autocommit, past every limit that the demo's clients meet."""
        import psycopg2

        connection = psycopg2.connect(
            host=str(self.folder), port=self.port, user="postgres", dbname=database
        )
        connection.autocommit = True
        return connection

    @contextmanager
    def cursor(self, database: str = USER) -> Iterator[psycopg2.extensions.cursor]:
        """Give a cursor of the superuser; each statement is a transaction of its own.

        Raises ``OperatorError`` (69), with the end of the log, if the server fails it.
        """
        import psycopg2

        try:
            with closing(self.connect(database)) as connection, connection.cursor() as cursor:
                yield cursor
        except psycopg2.Error as error:
            line = str(error).strip().partition("\n")[0]
            text = f"PostgreSQL failed: {line}; the end of its log:\n{tail(self.log_path)}"
            raise OperatorError(text, exitcodes.UNAVAILABLE) from None

    def ended(self) -> int | None:
        """Return the exit code if the server has ended, else None."""
        return None if self._child is None else self._child.process.poll()

    def stop(self) -> None:
        """Stop the server and end what its clients do; its data is not needed any more."""
        if self._child is not None:
            self._child.stop(STOP_S)
            self._child = None
        shutil.rmtree(self._data, ignore_errors=True)
