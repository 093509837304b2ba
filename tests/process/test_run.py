"""`pyproxy run` as an operator meets it: start, refuse, restart, stop.

Not here: what passes through the proxy (`../postgres/`). Next on the path:
`../postgres/test_pool.py`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fix_postgres import free_port, wait_until

SETTINGS = """\
[supervisor]
runtime_dir = "run"
shutdown_timeout = "5s"
orphan_timeout = "0s"

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
    """A service in a folder of its own, with a target that does not answer."""

    def __init__(self, folder: Path, port: int = 0, text: str = SETTINGS) -> None:
        self.folder = folder
        self.port = port or free_port()
        (folder / "run").mkdir(exist_ok=True)
        self.file = folder / "pyproxy.toml"
        self.file.write_text(text.format(port=self.port, target=free_port()))
        self.output = folder / "output"
        with self.output.open("wb") as output:
            command = [sys.executable, "-m", "pyproxy", "run", "-c", str(self.file)]
            self.process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)

    def log(self) -> str:
        return self.output.read_text()

    def wait_log(self, text: str, count: int = 1) -> None:
        wait_until(lambda: self.log().count(text) >= count, f"{text!r} in the log")

    def worker(self) -> int:
        self.wait_log("event=serving")
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(task.read_text().split()[0])

    def end(self) -> int:
        return self.process.wait(20)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Return a function that starts a service; kills what is left of it."""
    made: list[Service] = []

    def start(port: int = 0, text: str = SETTINGS) -> Service:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Service(folder, port, text))
        return made[-1]

    yield start
    for each in made:
        each.process.kill()
        each.process.wait()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_it_serves_on_tcp_and_unix_and_ends_cleanly(service: Callable[..., Service]) -> None:
    running = service()
    running.wait_log("event=serving")
    socket.create_connection(("127.0.0.1", running.port)).close()
    path = running.folder / "run" / f".s.PGSQL.{running.port}"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    pid_file = running.folder / "run" / "pyproxy.pid"
    assert int(pid_file.read_text()) == running.process.pid
    running.process.terminate()
    assert running.end() == 0
    assert not pid_file.exists()
    assert not path.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_int_and_quit_end_it_with_0(
    service: Callable[..., Service], number: signal.Signals
) -> None:
    running = service()
    running.wait_log("event=serving")
    running.process.send_signal(number)
    assert running.end() == 0


def test_a_killed_worker_is_replaced_and_the_listener_never_goes_away(
    service: Callable[..., Service],
) -> None:
    running = service()
    os.kill(running.worker(), signal.SIGKILL)
    with socket.create_connection(("127.0.0.1", running.port)):
        running.wait_log("event=serving", count=2)
    running.process.terminate()
    assert running.end() == 0


def test_the_supervisor_stays_one_thread_and_the_worker_has_its_engine(
    service: Callable[..., Service],
) -> None:
    running = service()
    worker = running.worker()
    assert len(list(Path(f"/proc/{running.process.pid}/task").iterdir())) == 1
    assert len(list(Path(f"/proc/{worker}/task").iterdir())) >= 2
    running.process.terminate()
    assert running.end() == 0


def test_a_worker_without_its_supervisor_drains_and_ends(service: Callable[..., Service]) -> None:
    running = service()
    worker = running.worker()
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not lives(worker), "the orphan has ended")


def test_a_port_in_use_is_one_line_and_69(service: Callable[..., Service]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        running = service(taken.getsockname()[1])
        assert running.end() == 69
    (line,) = running.log().splitlines()
    assert line.startswith("pyproxy: cannot listen on 127.0.0.1:")
    assert "stop it or choose another address" in line


def test_a_second_service_in_the_same_directory_is_one_line_and_69(
    service: Callable[..., Service],
) -> None:
    first = service()
    first.wait_log("event=serving")
    text = SETTINGS.replace('"run"', f'"{first.folder}/run"')
    second = service(text=text)
    assert second.end() == 69
    (line,) = second.log().splitlines()
    assert f"another service (pid {first.process.pid})" in line
    first.process.terminate()
    assert first.end() == 0


def test_a_bad_configuration_is_listed_and_78(service: Callable[..., Service]) -> None:
    running = service(text=SETTINGS.replace("scheme", "schema").replace("5s", "5"))
    assert running.end() == 78
    assert len(running.log().splitlines()) >= 3
    assert "unknown key 'schema'; did you mean 'scheme'?" in running.log()


def test_a_dead_target_is_one_line_that_says_what_to_do(service: Callable[..., Service]) -> None:
    running = service()
    running.wait_log("event=target_unreachable")
    (line,) = [each for each in running.log().splitlines() if "target_unreachable" in each]
    assert 'reason="Connection refused"' in line
    assert "hint=" in line
    running.process.terminate()
    assert running.end() == 0
