"""`pyproxy run` as an operator meets it: start, refuse, restart, stop.

Runs the product. Not here: what passes through it (`../postgres/`). Next on the path:
`../postgres/test_pool.py`.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fix_postgres import wait_until
from tests.process.harness import ROOT, Service, services
from tests.processes import lives

Make = Callable[..., Service]
LOCAL_TARGET = '  [[proxy.target]]\n  host = "127.0.0.1"'


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Make]:
    """Return a function that starts a service; nothing of it is left after the test."""
    with services(tmp_path) as make:
        yield lambda **values: make(real=True, **values)


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Service]:
    """A service that is not started yet."""
    made = Service(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


def test_it_serves_on_tcp_and_unix_and_ends_cleanly(service: Make) -> None:
    running = service(workers=2)
    running.wait_ready()
    socket.create_connection(("127.0.0.1", running.port)).close()
    path = running.folder / "run" / f".s.PGSQL.{running.port}"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert int((running.folder / "run" / "pyproxy.pid").read_text()) == running.process.pid
    running.stop()
    assert list((running.folder / "run").iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_int_and_quit_end_it_with_0(service: Make, number: signal.Signals) -> None:
    running = service()
    running.wait_ready()
    running.process.send_signal(number)
    assert running.end() == 0


def test_a_killed_worker_is_replaced_and_the_listener_never_goes_away(service: Make) -> None:
    running = service()
    running.wait_ready()
    os.kill(running.pid("worker", 0), signal.SIGKILL)
    with socket.create_connection(("127.0.0.1", running.port)):
        running.wait_said("event=serving", count=2)
    running.stop()


def test_a_crash_is_told_with_the_fault_that_ended_the_worker(service: Make) -> None:
    running = service()
    running.wait_ready()
    os.kill(running.pid("worker", 0), signal.SIGSEGV)
    running.wait_said('event=worker_last_line worker=0 line="Fatal Python error: Segmentation')
    running.wait_said("event=serving", count=2)
    running.stop()


def test_supervisor_and_admin_stay_one_thread_and_the_worker_has_its_engine(service: Make) -> None:
    running = service()
    running.wait_ready()
    pids = (running.process.pid, running.pid("admin"), running.pid("worker", 0))
    assert [len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids] == [1, 1, 2]
    running.stop()


def test_a_worker_without_its_supervisor_drains_and_ends(service: Make) -> None:
    running = service(workers=2)
    running.wait_ready()
    pids = [running.pid("worker", 0), running.pid("worker", 1)]
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not any(map(lives, pids)), "the orphans have ended")


def test_a_name_is_resolved_by_the_controller_and_reaches_the_workers(idle: Service) -> None:
    idle.text = idle.text.replace(LOCAL_TARGET, LOCAL_TARGET.replace("127.0.0.1", "localhost"))
    idle.write(workers=2)
    idle.start(real=True)
    idle.wait_said("event=topology epoch=2")
    target = idle.values["target"]
    wait_until(
        lambda: f"127.0.0.1:{target}" in idle.ask("status")["targets"][f"localhost:{target}"],
        "the address",
    )
    wait_until(
        lambda: [row["epoch"] for row in idle.rows("workers")] == [2, 2], "both have the address"
    )
    idle.stop()


def test_a_port_in_use_is_one_line_and_69(service: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        running = service(port=taken.getsockname()[1])
        assert running.end() == 69
    (line,) = running.log().splitlines()
    assert line.startswith("pyproxy: cannot listen on 127.0.0.1:")
    assert "stop it or choose another address" in line


def test_a_second_service_in_the_same_directory_is_one_line_and_69(
    service: Make, idle: Service
) -> None:
    first = service()
    first.wait_ready()
    idle.text = idle.text.replace('"run"', f'"{first.folder}/run"')
    idle.write()
    idle.start(real=True)
    assert idle.end() == 69
    (line,) = idle.log().splitlines()
    assert f"another service (pid {first.process.pid})" in line
    assert first.ask("status")["pid"] == first.process.pid
    first.stop()


def test_a_bad_configuration_is_listed_and_78(idle: Service) -> None:
    idle.text = idle.text.replace("scheme", "schema")
    idle.write(drain="5")
    idle.start(real=True)
    assert idle.end() == 78
    assert len(idle.log().splitlines()) == 4
    assert "unknown key 'schema'; did you mean 'scheme'?" in idle.log()
    assert idle.log().endswith("pyproxy: 3 problems in the configuration\n")


def test_a_dead_target_is_one_line_that_says_what_to_do(service: Make) -> None:
    running = service(workers=2)
    running.wait_said("event=target_unreachable")
    (line,) = [each for each in running.log().splitlines() if "target_unreachable" in each]
    assert 'reason="Connection refused"' in line
    assert "hint=" in line
    running.stop()


def test_systemd_hears_ready_reloading_stopping_and_the_watchdog(idle: Service) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(idle.folder / "notify"))
        systemd.settimeout(15)
        heard: list[str] = []

        def hear(wanted: str) -> None:
            while not any(wanted in each for each in heard):
                heard.append(systemd.recv(1000).decode())

        own = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "400000"}
        idle.start(real=True, env={**os.environ, **own})
        hear("READY=1\nSTATUS=serving with 1 workers")
        heard.clear()
        hear("WATCHDOG=1")
        assert idle.ask("reload")["ok"]
        hear("RELOADING=1\nMONOTONIC_USEC=")
        hear("READY=1")
        idle.process.terminate()
        hear("STOPPING=1")
        assert idle.end() == 0


def test_rights_are_given_up_before_the_first_child(idle: Service) -> None:
    """As root to nobody; as anybody else, to who that is already."""
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    idle.write(more=f'user = "{user.pw_name}"', workers=2)
    _let_pass(idle.folder)
    idle.start(real=True)
    idle.wait_ready()
    old = idle.pid("worker", 0)
    os.kill(old, signal.SIGKILL)
    new = idle.wait_new_pid("worker", old, 0)
    for pid in (idle.process.pid, new, idle.pid("controller"), idle.pid("admin")):
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"Uid:\t{user.pw_uid}\t{user.pw_uid}\t{user.pw_uid}\t{user.pw_uid}\n" in status
    for file in (idle.folder / "run").iterdir():
        assert file.stat().st_uid == user.pw_uid
    wait_until(idle.answers, "the admin process answers")
    idle.stop()
    assert list((idle.folder / "run").iterdir()) == []


def test_a_user_that_is_not_there_is_one_line_and_78(idle: Service) -> None:
    idle.write(more='user = "no-such-user"')
    idle.start(real=True)
    assert idle.end() == 78
    (line,) = idle.log().splitlines()
    assert line.startswith("pyproxy: supervisor.user: there is no user 'no-such-user'")
    assert list((idle.folder / "run").iterdir()) == []


def _let_pass(folder: Path) -> None:
    """Let other users reach a folder, which pytest makes for its own user."""
    for each in (folder, *folder.parents):
        if each.stat().st_uid == os.geteuid() and each.stat().st_mode & 0o11 != 0o11:
            each.chmod(0o711)


def test_a_log_that_nobody_reads_stops_nothing(idle: Service) -> None:
    """Standard error is a pipe, full to the brim, for the whole life of the service."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    idle.write(workers=2)
    command = [sys.executable, "-m", "pyproxy", "run", "-c", str(idle.file)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=writer, stderr=writer)
    idle.process = process
    wait_until(lambda: idle.answers() and len(idle.rows("workers")) == 2, "the service answers")
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, b"x" * 4096):
            pass
    (victim,) = [row["pid"] for row in idle.rows("workers") if row["worker"] == 1]
    os.kill(victim, signal.SIGKILL)

    def is_replaced() -> bool:
        rows = {row["worker"]: row for row in idle.rows("workers")}
        return 1 in rows and rows[1]["pid"] not in (None, victim) and rows[1]["state"] == "serving"

    wait_until(is_replaced, "another worker")
    assert idle.ask("reload")["ok"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    os.close(reader)
    os.close(writer)
