"""Attacks on many workers: on lost mail, on the supervisor and its sockets and files.

Each test names the promise that somebody tries to break. What a hostile peer says to one worker is
in `test_hostile.py`. Next on the path: `test_tagged_rows.py`.
"""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from pyproxy.verbs.service import CONTROL
from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.wire import Wire, query

Maker = Callable[..., Proxy]
NO_DESCRIPTOR = 3
AT_ONCE_S = 5.0

pytestmark = pytest.mark.timeout(300)


def process_of(front: Proxy, worker: int) -> int:
    """Return a worker's process id."""
    return {row["worker"]: int(row["pid"]) for row in front.table("workers")}[worker]


@contextmanager
def clients_at(front: Proxy, *workers: int) -> Iterator[list[Wire]]:
    """Give one client at each of the workers, in this order; a worker may stand there twice."""
    with ExitStack() as stack:
        at: dict[int, list[Wire]] = {}
        for number in range(4 * len(workers) + 4):
            name = f"client-{number}"
            client = stack.enter_context(front.wire("guest", application_name=name))
            homes = {row["application_name"]: row["worker"] for row in front.table("clients")}
            at.setdefault(homes[name], []).append(client)
            if all(len(at.get(each, [])) >= workers.count(each) for each in workers):
                break
        yield [at[each].pop() for each in workers]


def test_settings_that_a_worker_could_not_receive_reach_it_later(
    postgres15: Postgres, proxy: Maker
) -> None:
    """A worker without a free descriptor loses the mail; it is told again."""
    front = proxy(postgres15, workers=2)
    with clients_at(front, 1) as (client,):
        assert client.value("SELECT 1") == "1"
        worker = process_of(front, 1)
        limits = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (NO_DESCRIPTOR, limits[1]))
        assert front.ask("pause", database="test", timeout_s=1)["lagging"] == [1]
        resource.prlimit(worker, resource.RLIMIT_NOFILE, limits)
        wait_until(lambda: {row["epoch"] for row in front.table("workers")} == {2}, "all know it")
        client.send(query("SELECT 2"))
        assert client.quiet(0.5), "the database is paused"
        assert front.ask("resume")["ok"]
        client.until("Z")


BOMBS = {
    "lists": b"[" * 7000,
    "objects": b'{"verb":' * 900,
    "not a number": b'{"verb": "kill-client", "client": NaN}',
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_no_request_of_the_control_socket_ends_the_supervisor(
    bomb: bytes, postgres15: Postgres, proxy: Maker
) -> None:
    """Ten of them in a row are answered, and the service goes on."""
    front = proxy(postgres15)
    for _ in range(10):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(AT_ONCE_S)
            caller.connect(str(front.runtime_dir / CONTROL))
            caller.sendall(bomb + b"\n")
            assert caller.recv(4096).startswith(b'{"ok": false')
    assert front.ask("status")["state"] == "serving"
    assert "supervisor_fault" not in front.log()


def test_two_drains_at_the_same_moment_are_one(postgres15: Postgres, proxy: Maker) -> None:
    """Nobody's transaction is ended by the second, which finds the service draining."""
    front = proxy(postgres15)
    assert front.process is not None
    with front.wire("guest") as client, ExitStack() as stack:
        client.ask("BEGIN")
        callers = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
        for caller in callers:
            caller.connect(str(front.runtime_dir / CONTROL))
        assert front.ask("status")["ok"]
        front.process.send_signal(signal.SIGSTOP)
        for caller in callers:
            caller.sendall(b'{"verb": "drain"}\n')
        front.process.send_signal(signal.SIGCONT)
        answers = [caller.recv(4096)[:11] for caller in callers]
        assert sorted(answers) == [b'{"ok": fals', b'{"ok": true']
        assert client.value("SELECT 1") == "1"
        client.ask("COMMIT")
    assert "at_once=true" not in front.log()


def test_a_link_in_place_of_the_pid_file_is_not_followed(
    postgres15: Postgres, proxy: Maker
) -> None:
    """The directory may belong to the service's user, and root starts the service."""
    front = proxy(postgres15)
    front.stop()
    victim = front.folder / "victim"
    victim.write_text("precious")
    (front.runtime_dir / "pyproxy.pid").symlink_to(victim)
    program = [sys.executable, "-m", "pyproxy", "run", "-c", str(front.config_path)]
    ended = subprocess.run(program, capture_output=True, check=False, timeout=60)
    assert ended.returncode == 78, ended.stderr
    assert victim.read_text() == "precious"
