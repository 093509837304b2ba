"""Fixture that runs the real program, `pyproxy run -c FILE`, in front of a real or fake server.

`proxy(target, …)` writes a configuration and a secret file, starts the program and waits until it
accepts; at the end of the test it is stopped with SIGTERM, must exit with 0 and must not have
logged a panic or a traceback. Nothing here knows SQL. Next on the path: `postgres/`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psycopg2
import psycopg2.extensions
import pytest

from pyproxy.demo.children import free_port
from pyproxy.verbs.service import CONTROL, STATS, ask
from tests.fix_postgres import PASSWORDS, wait_until
from tests.processes import cpu_seconds, private_bytes
from tests.wire import PROTOCOL_3_0, WAIT_S, Wire, WireError

START_S = 20.0
STOP_S = 20.0
Table = Mapping[str, Any]
TRUSTED = {"user": "postgres", "scheme": "trust"}
DEFAULT_AUTH: tuple[Table, ...] = (
    TRUSTED,
    {"user": "app", "scheme": "file", "secret": "file:users.toml"},
    {
        "user": "old",
        "scheme": "file",
        "secret": "file:users.toml",
        "client_auth": "md5",
    },
    {"user": "plain", "scheme": "file", "secret": "file:users.toml"},
    {"user": "guest", "scheme": "trust"},
)
FAULTS = re.compile(r"panicked|Traceback \(most recent call last\)|RUST_BACKTRACE|SIGSEGV")


class Target(Protocol):
    """What a proxy may stand in front of."""

    host: str
    port: int


def toml_table(name: str, values: Table, *, many: bool = False) -> str:
    """Return a TOML table of strings, numbers, booleans and lists of strings; None is left out."""
    head = f"[[{name}]]" if many else f"[{name}]"
    lines = [f"{k} = {json.dumps(v)}" for k, v in values.items() if v is not None]
    return "\n".join([head, *lines, ""])


@dataclass
class Proxy:
    """One running proxy; `port` is its endpoint's on 127.0.0.1."""

    folder: Path
    port: int
    host: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = None
    expect_exit: int = 0
    written: dict[str, Any] = field(default_factory=dict)

    @property
    def config_path(self) -> Path:
        """The configuration file."""
        return self.folder / "pyproxy.toml"

    def write(
        self,
        target: Target,
        *,
        pool: Table,
        auth: tuple[Table, ...],
        users: Mapping[str, Table],
        supervisor: Table,
        settings: Table,
        more_listen: tuple[str, ...] = (),
    ) -> None:
        """Write the configuration and the secret file; `more_listen` are further addresses."""
        self.written = {
            "target": target,
            "pool": pool,
            "auth": auth,
            "users": users,
            "supervisor": supervisor,
            "settings": settings,
            "more_listen": more_listen,
        }
        parts = [
            toml_table(
                "supervisor",
                {
                    "workers": 1,
                    "runtime_dir": str(self.folder / "run"),
                    "shutdown_timeout": "5s",
                    "io": os.environ.get("PYPROXY_TEST_IO", "auto"),
                }
                | dict(supervisor),
            ),
            toml_table("log", {"format": "logfmt", "level": "info"}),
            toml_table(
                "proxy",
                {"name": "test", "engine": "postgresql"} | dict(settings),
                many=True,
            ),
            toml_table(
                "proxy.endpoint",
                {"name": "default", "listen": [f"{self.host}:{self.port}", *more_listen]},
                many=True,
            ),
            toml_table("proxy.pool", pool),
            *(toml_table("proxy.auth", entry, many=True) for entry in auth),
            toml_table(
                "proxy.target",
                {"host": target.host, "port": target.port, "tls": "disable"},
                many=True,
            ),
        ]
        self.config_path.write_text("\n".join(parts))
        secrets = self.folder / "users.toml"
        secrets.write_text("\n".join(toml_table(user, t) for user, t in users.items()))
        secrets.chmod(0o600)

    def rewrite(self, **changes: Any) -> None:
        """Write the files again with other arguments of `write`; the service is not told."""
        self.write(**self.written | changes)

    def start(self, **popen: Any) -> None:
        """Start the program and wait until its endpoint accepts."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pyproxy", "run", "-c", str(self.config_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **popen,
            )
        wait_until(self._accepts, "the proxy accepts", START_S)

    def _accepts(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"the proxy ended with {self.process.returncode}:\n{self.log()}")
        if "event=ready" not in self.log():
            return False
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    @property
    def runtime_dir(self) -> Path:
        """Where the sockets of the verbs are."""
        return self.folder / "run"

    def table(self, verb: str) -> list[dict[str, Any]]:
        """Return the rows of a read verb: clients, servers, pools, workers, targets."""
        rows: list[dict[str, Any]] = self.ask(verb, STATS)["rows"]
        return rows

    def ask(self, verb: str, socket_name: str = CONTROL, **more: Any) -> dict[str, Any]:
        """Send a verb to the service as the command line does; return the answer."""
        answer: dict[str, Any] = ask(self.runtime_dir, socket_name, {"verb": verb} | more, 60.0)
        return answer

    def run_verb(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `pyproxy VERB … -c FILE`."""
        return subprocess.run(
            [sys.executable, "-m", "pyproxy", *arguments, "-c", str(self.config_path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def stop(self) -> None:
        """Stop with SIGTERM; fail on another exit code than expected or a fault in the log."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"the proxy did not stop within {STOP_S:g} s:\n{self.log()[-3000:]}")
        text = self.log()
        if FAULTS.search(text):
            pytest.fail(f"a fault in the proxy's log:\n{text[-4000:]}")
        assert code == self.expect_exit, f"exit code {code}:\n{text[-3000:]}"

    @property
    def log_path(self) -> Path:
        """Where the program's output goes."""
        return self.folder / "proxy.log"

    def log(self) -> str:
        """Return the log so far."""
        return self.log_path.read_text(errors="replace")

    def wait_log(self, pattern: str, seconds: float = 10.0, count: int = 1) -> list[str]:
        """Wait until `count` log lines match a regular expression and return them."""

        def found() -> list[str] | None:
            lines = [line for line in self.log().splitlines() if re.search(pattern, line)]
            return lines if len(lines) >= count else None

        return list(wait_until(found, f"log line {pattern!r} in:\n{self.log()[-2000:]}", seconds))

    def children(self, name: str = "worker") -> list[int]:
        """Return the process ids of the live workers, or of the controller or the admin."""
        found = {}
        for line in self.log().splitlines():
            if started := re.search(rf"event={name}_started .*", line):
                pid = re.search(r"process=(\d+)", started[0])
                number = re.search(r"worker=(\d+)", started[0])
                assert pid is not None, line
                found[number[1] if number else ""] = int(pid[1])
        return [pid for _, pid in sorted(found.items()) if Path(f"/proc/{pid}").exists()]

    @property
    def worker(self) -> int:
        """The process id of the first worker."""
        return self.children()[0]

    def rss_bytes(self) -> int:
        """Return the worker's private memory in bytes."""
        return private_bytes(self.worker)

    def cpu_s(self) -> float:
        """Return the processor time that the worker has used, in seconds."""
        return cpu_seconds(self.worker)

    def wire(
        self,
        user: str = "postgres",
        database: str = "test",
        password: str | None = None,
        version: int = PROTOCOL_3_0,
        **parameters: str,
    ) -> Wire:
        """Log in with the raw client."""
        return Wire.login(
            self.host,
            self.port,
            user=user,
            database=database,
            password=PASSWORDS.get(user) if password is None else password,
            version=version,
            wait_s=WAIT_S,
            **parameters,
        )

    def refusal(
        self, user: str = "postgres", database: str = "test", password: str | None = None
    ) -> str:
        """Log in and run a query with the raw client; one of both must fail; return why."""
        with pytest.raises(WireError) as refused, self.wire(user, database, password) as client:
            client.value("SELECT 1")
        return str(refused.value)

    @contextmanager
    def connect(
        self, user: str = "postgres", database: str = "test", **more: Any
    ) -> Iterator[psycopg2.extensions.connection]:
        """Log in with psycopg2; the connection is closed with the block."""
        given = {"password": PASSWORDS.get(user), "connect_timeout": 20} | more
        connection = psycopg2.connect(
            host=self.host, port=self.port, user=user, dbname=database, **given
        )
        try:
            yield connection
        finally:
            connection.close()

    def dsn(self, user: str = "postgres", database: str = "test") -> str:
        """Return a URL for drivers."""
        password = PASSWORDS.get(user)
        login = user if password is None else f"{user}:{password}"
        return f"postgresql://{login}@{self.host}:{self.port}/{database}?sslmode=disable"


class ProxyMaker:
    """Starts proxies below one folder and stops them all."""

    def __init__(self, folder: Path) -> None:
        """Keep configuration, secrets and logs below `folder`."""
        self.folder = folder
        self.made: list[Proxy] = []

    def __call__(
        self,
        target: Target,
        *,
        pool: Table | None = None,
        auth: tuple[Table, ...] = DEFAULT_AUTH,
        users: Mapping[str, Table] | None = None,
        popen: Table | None = None,
        workers: int = 1,
        supervisor: Table | None = None,
        **settings: Any,
    ) -> Proxy:
        """Start a proxy in front of `target`.

        `pool` are keys of `[proxy.pool]` (5 servers unless said), `auth` the `[[proxy.auth]]`
        tables, `users` the secret file, `popen` arguments of the process, `workers` and
        `supervisor` keys of `[supervisor]`, `settings` keys of `[[proxy]]`.
        """
        folder = self.folder / f"proxy-{len(self.made)}"
        folder.mkdir()
        proxy = Proxy(folder, free_port())
        passwords = {user: {"password": text} for user, text in PASSWORDS.items()}
        proxy.write(
            target,
            pool={"max_connections": 5} | dict(pool or {}),
            auth=auth,
            users=passwords if users is None else users,
            supervisor={"workers": workers} | dict(supervisor or {}),
            settings=settings,
        )
        self.made.append(proxy)
        proxy.start(**(popen or {}))
        return proxy

    def stop(self) -> None:
        """Stop all proxies, each checked; the first fault is raised after all have ended."""
        faults: list[BaseException] = []
        for proxy in self.made:
            try:
                proxy.stop()
            except (AssertionError, pytest.fail.Exception) as fault:
                faults.append(fault)
        if faults:
            raise faults[0]


def private_folder(path: Path) -> Path:
    """Make a folder that only this account can read, as a secret file needs."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """Give a maker of proxies (see ProxyMaker) that end, checked, with the test."""
    maker = ProxyMaker(private_folder(tmp_path / "proxies"))
    yield maker
    maker.stop()


@pytest.fixture(scope="module")
def module_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Proxy]]:
    """Give a maker of proxies that end, checked, with the test module."""
    maker = ProxyMaker(private_folder(tmp_path_factory.mktemp("proxies")))
    yield maker
    maker.stop()
