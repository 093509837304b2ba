"""The proxy under demonstration: its two files, and `pyproxy run` with them.

Next on the path: ``storm.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pyproxy.demo.children import Child, free_port, tail
from pyproxy.demo.postgres import USER, Postgres
from pyproxy.verbs.service import STATS, ask

START_S = 20.0
"""How long it may take until it accepts."""
STOP_S = 20.0
"""How long it may take to end before it is killed."""

_CONFIGURATION = """\
[supervisor]
workers = {workers}
runtime_dir = "run"
shutdown_timeout = "5s"

[[proxy]]
name = "demo"
  [proxy.pool]
  max_connections = {servers}         # to the database, over all clients and workers
  [[proxy.endpoint]]
  listen = ["127.0.0.1:{port}"]
  [[proxy.auth]]
  user = "{user}"
  secret = "file:users.toml"
  [[proxy.target]]
  host = "{host}"
  port = {target_port}
"""
_USERS = """\
[{user}]
password = "{password}"
"""


class Service:
    """A running `pyproxy run` in front of a server."""

    host = "127.0.0.1"

    def __init__(self, folder: Path, target: Postgres, *, servers: int, workers: int) -> None:
        """Write the configuration and the secret file into ``folder``, which exists.

        ``servers`` is the most server connections that it may open, ``workers`` its processes.
        """
        self.folder = folder
        self.port = free_port()
        self._target = target
        self._child: Child | None = None
        text = _CONFIGURATION.format(
            workers=workers,
            servers=servers,
            port=self.port,
            user=USER,
            host=target.host,
            target_port=target.port,
        )
        self.config_path.write_text(text)
        users = folder / "users.toml"
        users.touch(mode=0o600)
        users.write_text(_USERS.format(user=USER, password=target.password))

    @property
    def config_path(self) -> Path:
        """The configuration file, for verbs to be pointed at."""
        return self.folder / "pyproxy.toml"

    @property
    def url(self) -> str:
        """How a client reaches the database through the proxy."""
        return f"postgresql://{USER}:{self._target.password}@{self.host}:{self.port}/{USER}"

    @property
    def log_path(self) -> Path:
        """Where the service writes its log."""
        return self.folder / "pyproxy.log"

    def log_tail(self) -> str:
        """Return the last lines of its log."""
        return tail(self.log_path)

    def start(self) -> None:
        """Start it and wait until it accepts; raises ``OperatorError`` (69) if it does not."""
        command = [sys.executable, "-m", "pyproxy", "run", "-c", str(self.config_path)]
        self._child = Child("pyproxy run", command, self.folder, self.log_path)
        self._child.wait_until(self._ready, START_S)

    def _ready(self) -> bool:
        return "event=ready" in self.log_path.read_text(errors="replace")

    def status(self) -> dict[str, Any]:
        """Return what ``pyproxy status --json`` prints; raises ``OperatorError`` (69)."""
        found: dict[str, Any] = ask(self.folder / "run", STATS, {"verb": "status"})
        return found

    def ended(self) -> int | None:
        """Return the exit code if the service has ended, else None."""
        return None if self._child is None else self._child.process.poll()

    def stop(self) -> None:
        """Drain it, shortly, and end it."""
        if self._child is not None:
            self._child.stop(STOP_S)
            self._child = None
