"""Processes that the demo starts: each in a group of its own, ended with it whatever happens.

Next on the path: ``postgres.py``.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyproxy import exitcodes
from pyproxy.errors import OperatorError

LOOK_S = 0.01
"""How often a child is looked at while somebody waits for it."""
QUIT_S = 10.0
"""What a child gets that must end at once; PostgreSQL kills its own after 5 s."""


class Child:
    """One child process with its log; Ctrl-C at the terminal does not reach it."""

    def __init__(
        self, name: str, command: list[str], folder: Path, log_path: Path, **popen: Any
    ) -> None:
        """Start ``command`` in ``folder``; ``name`` is what error texts call it."""
        self.name = name
        self.log_path = log_path
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - no shell, and names of our own
                [*_ends_with_us(), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
                **popen,
            )

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until it is ready.

        Raises ``OperatorError`` (69), with the end of its log, if it ends or takes too long.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            code = self.process.poll()
            if code is not None:
                self._failed(f"ended with {code}")
            if time.monotonic() > deadline:
                self.stop(0)
                self._failed(f"was not ready within {seconds:g} s")
            time.sleep(LOOK_S)

    def stop(self, seconds: float) -> int:
        """End it and all that it started; return its exit code.

        SIGINT asks it, SIGQUIT after ``seconds`` tells it, SIGKILL after ``QUIT_S`` more ends it.
        """
        for number, patience_s in ((signal.SIGINT, seconds), (signal.SIGQUIT, QUIT_S)):
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
                break
        family = _family(self.process.pid)
        self.process.kill()
        code = self.process.wait()
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return code

    def _failed(self, what: str) -> None:
        text = f"{self.name} {what}; the end of its log:\n{tail(self.log_path)}"
        raise OperatorError(text, exitcodes.UNAVAILABLE)


def _family(pid: int) -> list[int]:
    """Return a child's descendants, and what is left of its session if it has ended.

    Workers outlive their supervisor, and a frozen server cannot end its own.
    """
    parents, family = {}, {pid}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # Behind the name, which may have any character: state, parent, group, session.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            if int(fields[3]) == pid:
                family.add(int(entry.name))
    before = 0
    while len(family) > before:
        before = len(family)
        family |= {each for each, parent in parents.items() if parent in family}
    return sorted(family - {pid})


def tail(path: Path, lines: int = 10) -> str:
    """Return the last lines of a log file."""
    text = path.read_text(errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-lines:])


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def _ends_with_us() -> list[str]:
    """Return a prefix that makes the kernel end a command when this process is gone."""
    program = shutil.which("setpriv")
    return [program, "--pdeathsig", "INT", "--"] if program else []
