"""Starts the service in a folder of its own, and looks at it as an operator does.

Either the product (`real=True`), or the same command on the stand-in engine with workers that
behave as said (`program.py`). Not a test itself. Next on the path: `test_arbiter.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pyproxy.demo.children import free_port
from pyproxy.errors import OperatorError
from pyproxy.verbs.service import CONTROL, STATS, ask
from tests.fix_postgres import wait_until
from tests.processes import lives

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = """\
[supervisor]
runtime_dir = "run"
workers = {workers}
shutdown_timeout = "{drain}"
orphan_timeout = "{orphan}"
io = "{io}"
{more}
[[proxy]]
name = "orders"

  [[proxy.endpoint]]
  listen = ["127.0.0.1:{port}", "unix:run/.s.PGSQL.{port}"]

  [[proxy.auth]]
  user = "app"
  scheme = "trust"

  [[proxy.target]]
  host = "127.0.0.1"
  port = {target}
"""


class Service:
    """A service with a target that does not answer."""

    def __init__(self, folder: Path, **values: Any) -> None:
        self.folder = folder
        self.file = folder / "pyproxy.toml"
        self.output = folder / "output"
        self.port = free_port()
        self.values: dict[str, Any] = {
            "port": self.port,
            "target": free_port(),
            "workers": 1,
            "drain": "1s",
            "orphan": "0s",
            "io": os.environ.get("PYPROXY_TEST_IO", "auto"),
            "more": "",
        }
        self.text = SETTINGS
        (folder / "run").mkdir()
        self.write(**values)

    def write(self, **values: Any) -> None:
        """Write the configuration with some values changed."""
        self.values |= values
        self.file.write_text(self.text.format(**self.values))

    def start(self, behaviour: str = "good", *, real: bool = False, **popen: Any) -> None:
        """Start it."""
        program = ["pyproxy"] if real else ["tests.process.program", behaviour]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *program, "run", "-c", str(self.file)],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                **popen,
            )

    def log(self) -> str:
        return self.output.read_text()

    def said(self, pattern: str) -> list[str]:
        return re.findall(pattern, self.log(), re.MULTILINE)

    def wait_said(self, pattern: str, count: int = 1) -> list[str]:
        def enough() -> list[str] | None:
            found = self.said(pattern)
            return found if len(found) >= count else None

        return list(wait_until(enough, f"{pattern!r} in {self.log()[-3000:]}"))

    def wait_ready(self) -> None:
        self.wait_said("event=ready")

    def pid(self, kind: str, worker: int | None = None) -> int:
        """Return the process id of the latest child of a kind."""
        place = "" if worker is None else f" worker={worker}"
        return int(self.wait_said(rf"event={kind}_started{place} process=(\d+)")[-1])

    def wait_new_pid(self, kind: str, old: int, worker: int | None = None) -> int:
        def other() -> int | None:
            found = self.pid(kind, worker)
            return found if found != old else None

        return int(wait_until(other, f"a new {kind} after {old}"))

    def ask(self, verb: str, socket_name: str = CONTROL, **more: Any) -> dict[str, Any]:
        answer: dict[str, Any] = ask(self.folder / "run", socket_name, {"verb": verb, **more}, 20)
        return answer

    def rows(self, verb: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.ask(verb, STATS)["rows"]
        return rows

    def answers(self) -> bool:
        try:
            return bool(self.ask("status", STATS)["ok"])
        except OperatorError:
            return False

    def run_verb(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pyproxy", *words, "--runtime-dir", str(self.folder / "run")],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def end(self) -> int:
        return self.process.wait(30)

    def stop(self) -> None:
        """End it politely; it must end with 0."""
        self.process.terminate()
        code = self.end()
        assert code == 0, self.log()[-3000:]


@contextmanager
def services(folder: Path) -> Iterator[Callable[..., Service]]:
    """Give a maker of services; what is left of them at the end is killed."""
    made: list[Service] = []

    def make(behaviour: str = "good", *, real: bool = False, **values: Any) -> Service:
        own = folder / str(len(made))
        own.mkdir()
        made.append(Service(own, **values))
        made[-1].start(behaviour, real=real)
        return made[-1]

    yield make
    for each in made:
        each.process.kill()
        each.process.wait()
        for pid in each.said(r"_started .*process=(\d+)"):
            wait_until(partial(_ended, int(pid)), f"process {pid} has ended")


def _ended(pid: int) -> bool:
    return not lives(pid)
