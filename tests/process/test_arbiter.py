"""The arbiter keeps a worker alive, gives up when that is hopeless, and always ends when told to.

Workers are stand-ins (`program.py`), so nothing here needs a database. Next on the path:
`test_run.py`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fix_postgres import wait_until

ROOT = Path(__file__).resolve().parents[2]
DRAIN_MS = 60_000


class Service:
    """A running program and what it has said."""

    def __init__(self, folder: Path, worker: str, drain_ms: int) -> None:
        self.output = folder / "output"
        command = [sys.executable, "-m", "tests.process.program", worker, str(drain_ms)]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)

    def said(self, pattern: str) -> list[str]:
        return re.findall(pattern, self.output.read_text(), re.MULTILINE)

    def wait_said(self, pattern: str, count: int = 1) -> list[str]:
        def enough() -> list[str] | None:
            found = self.said(pattern)
            return found if len(found) >= count else None

        return list(wait_until(enough, f"{pattern!r}"))

    def workers(self) -> list[int]:
        """Return the worker's pid, once it has handlers of its own."""
        return [int(pid) for pid in self.wait_said(r"event=worker_started worker=(\d+)")]

    def end(self) -> int:
        return self.process.wait(20)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Return a function that starts a program; kills what is left of it."""
    made: list[Service] = []

    def start(worker: str, drain_ms: int = DRAIN_MS) -> Service:
        made.append(Service(tmp_path, worker, drain_ms))
        return made[-1]

    yield start
    for each in made:
        each.process.kill()
        each.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_worker_once_and_the_service_ends_with_0(
    service: Callable[..., Service], number: signal.Signals
) -> None:
    running = service("polite")
    running.workers()
    running.process.send_signal(number)
    assert running.end() == 0
    assert running.said(r"^told (\w+) in 1") == [number.name]
    assert running.said("^closed") == ["closed"]


def test_a_worker_that_is_killed_is_started_again(service: Callable[..., Service]) -> None:
    running = service("polite")
    (first,) = running.workers()
    os.kill(first, signal.SIGKILL)
    running.wait_said(rf"event=worker_ended worker={first} signal=SIGKILL")
    running.wait_said(r"event=worker_started worker=\d+ generation=2")
    running.process.terminate()
    assert running.end() == 0
    assert running.said(r"^told SIGTERM in (\d)") == ["2"]


def test_a_second_signal_stops_at_once(service: Callable[..., Service]) -> None:
    running = service("slow")
    running.workers()
    running.process.terminate()
    running.wait_said("^told SIGTERM in 1")
    running.process.terminate()
    assert running.end() == 0
    assert running.said("event=signal signal=SIGTERM at_once=true")


def test_quit_stops_at_once(service: Callable[..., Service]) -> None:
    running = service("slow")
    running.workers()
    running.process.send_signal(signal.SIGQUIT)
    assert running.end() == 0
    assert not running.said("^told")


def test_a_signal_without_effect_yet_does_not_end_the_service(
    service: Callable[..., Service],
) -> None:
    running = service("polite")
    running.workers()
    running.process.send_signal(signal.SIGHUP)
    running.wait_said("event=signal_without_effect signal=SIGHUP")
    running.process.terminate()
    assert running.end() == 0
    assert len(running.said("event=worker_started")) == 1


def test_a_deaf_worker_is_killed_after_its_time(service: Callable[..., Service]) -> None:
    running = service("deaf", 0)
    running.workers()
    running.process.terminate()
    assert running.end() == 0
    assert running.said("event=worker_killed")


def test_five_crashes_stop_the_service_with_69(service: Callable[..., Service]) -> None:
    running = service("crash")
    assert running.end() == 69
    assert (
        len(running.said("event=worker_ended .* code=1|event=worker_ended worker=.* code=1")) == 5
    )
    assert running.said("event=service_stopped .*5 crashes in 30 s")
    assert running.said("^closed") == ["closed"]


def test_a_worker_that_refuses_the_configuration_stops_the_service_with_78(
    service: Callable[..., Service],
) -> None:
    running = service("refuse")
    assert running.end() == 78
    assert len(running.said("event=worker_started")) == 1


def test_an_exception_in_a_worker_shows_its_traceback_and_counts_as_a_crash(
    service: Callable[..., Service],
) -> None:
    running = service("raise_error")
    assert running.end() == 69
    assert len(running.said("ValueError: a bug")) == 5


def test_a_signal_during_back_off_ends_the_service(service: Callable[..., Service]) -> None:
    running = service("crash")
    running.wait_said("event=worker_ended", count=3)
    running.process.terminate()
    assert running.end() in (0, 69)
    assert running.said("^closed") == ["closed"]
