"""The arbiter keeps its children alive, gives up when that is hopeless, and ends when told to.

Workers are stand-ins (`program.py`), so nothing here needs a database. Next on the path:
`test_reload.py`.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyproxy.errors import OperatorError
from pyproxy.verbs.service import STATS
from tests.fix_postgres import wait_until
from tests.process.harness import Service, services
from tests.processes import descriptors, lives

Make = Callable[..., Service]
RESTART_S = 3.0  # ten times what is promised


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Make]:
    """Return a function that starts a service; nothing of it is left after the test."""
    with services(tmp_path) as make:
        yield make


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_worker_once_and_the_service_ends_with_0(
    service: Make, number: signal.Signals
) -> None:
    running = service("polite")
    running.wait_ready()
    running.process.send_signal(number)
    assert running.end() == 0
    assert running.said(r"^told (\w+) in 1") == [number.name]


def test_a_worker_that_is_killed_is_started_again_at_once(service: Make) -> None:
    running = service(workers=2)
    running.wait_ready()
    first, other = running.pid("worker", 0), running.pid("worker", 1)
    began = time.monotonic()
    os.kill(first, signal.SIGKILL)
    running.wait_new_pid("worker", first, 0)
    running.wait_said("event=serving", count=3)
    assert time.monotonic() - began < RESTART_S
    assert running.said(r"event=worker_started worker=0 process=\d+ incarnation=(\d+)") == [
        "1",
        "3",
    ]
    assert running.said(rf"event=worker_ended worker=0 process={first} signal=SIGKILL")
    assert running.pid("worker", 1) == other
    running.stop()


def test_a_second_signal_stops_at_once(service: Make) -> None:
    running = service("slow", drain="1h")
    running.wait_ready()
    running.process.terminate()
    running.wait_said("^told SIGTERM in 1")
    running.process.terminate()
    assert running.end() == 0
    assert running.said("^told (SIGQUIT) in 1") == ["SIGQUIT"]


def test_quit_stops_at_once(service: Make) -> None:
    running = service("slow", drain="1h")
    running.wait_ready()
    running.process.send_signal(signal.SIGQUIT)
    assert running.end() == 0
    assert not running.said("^told SIGTERM")


def test_a_drain_is_bounded_by_the_shutdown_timeout(service: Make) -> None:
    running = service("slow", drain="100ms")
    running.wait_ready()
    running.process.terminate()
    assert running.end() == 0
    assert running.said(r"^told (\w+) in 1") == ["SIGTERM", "SIGQUIT"]


def test_a_deaf_worker_is_killed_after_its_time(service: Make) -> None:
    running = service("deaf", drain="0s")
    running.wait_ready()
    running.process.terminate()
    assert running.end() == 0
    assert running.said("event=worker_killed worker=0")


def test_a_stuck_worker_is_killed_and_replaced(service: Make) -> None:
    running = service(workers=2)
    running.wait_ready()
    stuck = running.pid("worker", 1)
    wait_until(lambda: all(row["heartbeat"] for row in running.rows("workers")), "a beat of each")
    os.kill(stuck, signal.SIGSTOP)
    running.wait_said(rf"event=worker_stuck worker=1 process={stuck}")
    running.wait_new_pid("worker", stuck, 1)
    running.wait_said("event=serving proxy=orders worker=1", count=2)
    running.stop()


@pytest.mark.parametrize(
    ("behaviour", "line"),
    [("crash", ""), ("raise_error", "ValueError: a bug"), ("abort", "Fatal Python error: Aborted")],
)
def test_five_crashes_stop_the_service_with_69_and_the_last_lines_are_quoted(
    service: Make, behaviour: str, line: str
) -> None:
    running = service(behaviour)
    assert running.end() == 69
    assert len(running.said("event=worker_ended worker=0")) == 5
    assert running.said("event=service_stopped .*5 crashes of worker 0 in 30 s")
    if line:
        assert len(running.said(f"event=worker_last_line worker=0 line=.*{line}")) == 5


def test_crashes_of_one_worker_end_the_others_politely(service: Make) -> None:
    running = service("crash_second", workers=2)
    running.wait_said("event=serving proxy=orders worker=0")
    assert running.end() == 69
    assert running.said("event=worker_ended worker=0 .*code=0")


def test_a_worker_that_refuses_the_configuration_stops_the_service_with_78(service: Make) -> None:
    running = service("refuse")
    assert running.end() == 78
    assert len(running.said("event=worker_started")) == 1


def test_a_signal_during_back_off_ends_the_service(service: Make) -> None:
    running = service("crash")
    running.wait_said("event=worker_ended", count=3)
    running.process.terminate()
    assert running.end() in (0, 69)


@pytest.mark.parametrize("kind", ["controller", "admin"])
def test_controller_and_admin_come_back_and_workers_do_not_notice(service: Make, kind: str) -> None:
    running = service()
    running.wait_ready()
    worker = running.pid("worker", 0)
    for crashes in range(1, 7):
        old = running.pid(kind)
        os.kill(old, signal.SIGKILL)
        running.wait_said(rf"event={kind}_ended process={old} signal=SIGKILL", 1)
        running.wait_new_pid(kind, old)
        assert len(running.said(f"event={kind}_ended")) == crashes
    wait_until(running.answers, "the admin process answers")
    assert running.rows("workers")[0]["pid"] == worker
    running.stop()


def test_ttin_and_ttou_change_the_number_of_workers(service: Make) -> None:
    running = service()
    running.wait_ready()
    running.process.send_signal(signal.SIGTTIN)
    running.wait_said("event=serving proxy=orders worker=1")
    running.process.send_signal(signal.SIGTTOU)
    running.wait_said("event=worker_ended worker=1 .*code=0")
    running.process.send_signal(signal.SIGTTOU)
    running.wait_said("event=workers_unchanged workers=1")
    assert [row["worker"] for row in running.rows("workers")] == [0]
    running.stop()


def test_workers_outlive_the_supervisor_for_the_orphan_timeout_then_drain(service: Make) -> None:
    running = service(workers=2, orphan="1s", drain="1s")
    running.wait_ready()
    pids = [running.pid("worker", 0), running.pid("worker", 1)]
    helpers = [running.pid("controller"), running.pid("admin")]
    running.process.kill()
    running.process.wait()
    running.wait_said("event=supervisor_gone", count=2)
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert running.ask("status", STATS)["state"] == "no supervisor"
    wait_until(lambda: not any(map(lives, pids)), "the orphans have ended")
    wait_until(lambda: not any(map(lives, helpers)), "controller and admin have ended")


def test_no_child_keeps_the_lock_the_control_socket_or_the_supervisors_pipes(service: Make) -> None:
    running = service(workers=2)
    running.wait_ready()
    own = descriptors(running.process.pid)
    (lock,) = [each for each in own if each.endswith("pyproxy.pid")]
    listening = _inode(running.folder / "run" / "control.sock")
    assert f"socket:[{listening}]" in own
    for pid in (running.pid("worker", 0), running.pid("controller"), running.pid("admin")):
        theirs = descriptors(pid)
        assert lock not in theirs
        assert f"socket:[{listening}]" not in theirs
        assert not any("pidfd" in each for each in theirs)
    for kind in ("controller", "admin"):
        served = [f"socket:[{inode}]" for inode in _listening_tcp(running.port)]
        assert served
        assert not set(served) & set(descriptors(running.pid(kind)))
    running.stop()


def test_a_supervisor_without_descriptors_goes_on_and_catches_up(service: Make) -> None:
    running = service(workers=2)
    running.wait_ready()
    supervisor, worker = running.process.pid, running.pid("worker", 0)
    before = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    lasting = 20  # numbers that its mailboxes hold all the time; poll(2) needs some room, too
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (lasting, before[1]))
    os.kill(worker, signal.SIGKILL)
    running.wait_said('event=worker_not_started worker=0 reason="Too many open files"')
    with pytest.raises(OperatorError):
        running.ask("status")
    running.wait_said("event=control_not_accepted")
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, before)
    running.wait_new_pid("worker", worker, 0)
    running.wait_said("event=serving proxy=orders worker=0", count=2)
    assert running.ask("reload")["ok"]
    running.stop()


def test_a_second_service_cannot_take_the_first_ones_place(service: Make) -> None:
    first = service()
    first.wait_ready()
    second = service(more="")
    second.text = second.text.replace('"run"', f'"{first.folder}/run"')
    second.wait_ready()
    second.stop()
    second.write()
    second.start()
    assert second.end() == 69
    assert f"another service (pid {first.process.pid})" in second.log()
    assert first.ask("status")["pid"] == first.process.pid
    first.stop()
    with pytest.raises(OperatorError):
        first.ask("status")


def _inode(path: Path) -> int:
    """Return the kernel's number of a listening Unix socket."""
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[-1] == str(path):
            return int(fields[6])
    raise AssertionError(path)


def _listening_tcp(port: int) -> list[str]:
    """Return the kernel's numbers of the sockets that listen on a port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    wanted = f":{port:04X}"
    return [row[9] for row in rows if row[1].endswith(wanted) and row[3] == "0A"]
