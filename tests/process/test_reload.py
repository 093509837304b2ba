"""A reload is taken over as a whole or not at all, and its caller is told which.

The engine is a stand-in (`stand_in.py`). Next on the path: `test_verbs.py`.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyproxy.demo.children import free_port
from tests.fix_postgres import wait_until
from tests.process.harness import Service, services
from tests.processes import descriptors, private_bytes

Make = Callable[..., Service]
RELOADS = 100


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Make]:
    """Return a function that starts a service; nothing of it is left after the test."""
    with services(tmp_path) as make:
        yield make


def echoes(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(b"x")
            return client.recv(1) == b"x"
    except ConnectionRefusedError:
        return False


def test_a_reload_moves_a_listener_while_clients_stay(service: Make) -> None:
    running = service(workers=2)
    running.wait_ready()
    before, after = running.port, free_port()
    with socket.create_connection(("127.0.0.1", before)) as client:
        client.sendall(b"1")
        assert client.recv(1) == b"1"
        running.write(port=after)
        assert running.ask("reload")["ok"]
        assert echoes(after)
        assert not echoes(before)
        client.sendall(b"2")
        assert client.recv(1) == b"2"
    assert not (running.folder / "run" / f".s.PGSQL.{before}").exists()
    assert running.said("event=listener_closed")
    running.stop()


def test_a_listener_that_stays_is_never_closed(service: Make) -> None:
    running = service()
    running.wait_ready()
    with socket.socket() as waiting:
        waiting.connect(("127.0.0.1", running.port))
        for _ in range(3):
            assert running.ask("reload")["ok"]
        waiting.sendall(b"x")
        assert waiting.recv(1) == b"x"
    running.stop()


def test_a_bad_configuration_changes_nothing_and_every_problem_is_told(service: Make) -> None:
    running = service()
    running.wait_ready()
    epoch = running.ask("status")["epoch"]
    running.text = running.text.replace("scheme", "schema").replace('"orders"', '"orders"\nmode=1')
    running.write()
    result = running.run_verb("reload")
    assert (result.returncode, result.stdout) == (78, "")
    assert "unknown key 'schema'; did you mean 'scheme'?" in result.stderr
    assert "unknown key 'mode'" in result.stderr
    assert f"{running.file}:" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("nothing was changed")
    assert running.ask("status")["epoch"] == epoch
    assert echoes(running.port)
    running.stop()


def test_hup_reloads_and_tells_problems_in_the_log(service: Make) -> None:
    running = service()
    running.wait_ready()
    running.write(port=free_port())
    running.process.send_signal(signal.SIGHUP)
    running.wait_said("event=reloaded epoch=2")
    running.write(port='"')
    running.process.send_signal(signal.SIGHUP)
    running.wait_said("event=reload_refused problem=.*TOML")
    running.stop()


def test_an_address_in_use_changes_nothing(service: Make) -> None:
    running = service()
    running.wait_ready()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        running.write(port=taken.getsockname()[1])
        answer = running.ask("reload")
    assert (answer["ok"], answer["exit"]) == (False, 78)
    assert "another process listens there" in answer["problems"][0]
    assert echoes(running.port)
    running.stop()


def test_what_only_a_restart_changes_is_refused_with_its_line(service: Make) -> None:
    running = service()
    running.wait_ready()
    running.write(orphan="7s", port=free_port())
    answer = running.ask("reload")
    assert answer["exit"] == 78
    (problem,) = answer["problems"]
    rule = "supervisor.orphan_timeout: only a restart changes it (now 0s, here 7s)"
    assert problem == f"{running.file}:5: {rule}"
    assert echoes(running.port)
    running.stop()


def test_the_number_of_workers_follows_the_file(service: Make) -> None:
    running = service(workers=1)
    running.wait_ready()
    running.write(workers=3)
    assert running.ask("reload")["workers"] == 3
    wait_until(lambda: len(running.rows("workers")) == 3, "three workers")
    running.write(workers=1)
    assert running.ask("reload")["ok"]
    wait_until(lambda: len(running.rows("workers")) == 1, "one worker")
    running.stop()


def test_reloads_at_the_same_time_are_all_answered(service: Make) -> None:
    running = service(workers=2)
    running.wait_ready()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: running.ask("reload"), range(16)))
    assert all(answer["ok"] for answer in answers)
    assert 2 <= len(running.said("event=reloaded")) <= 16
    running.stop()


def test_a_worker_that_dies_in_a_reload_starts_with_the_newest_epoch(service: Make) -> None:
    running = service(workers=2)
    running.wait_ready()
    dying = running.pid("worker", 1)
    os.kill(dying, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.ask, "reload")
        wait_until(lambda: running.ask("status")["epoch"] == 2, "the second epoch")
        os.kill(dying, signal.SIGKILL)
        assert answer.result()["ok"]
    rows = {row["worker"]: row["epoch"] for row in running.rows("workers")}
    assert rows == {0: 2, 1: 2}
    running.stop()


def test_a_worker_that_does_not_follow_is_named(service: Make) -> None:
    running = service(workers=2)
    running.wait_ready()
    os.kill(running.pid("worker", 1), signal.SIGSTOP)
    answer = running.ask("reload")
    if not running.said("event=worker_stuck"):
        assert (answer["ok"], answer["lagging"]) == (False, [1])
        assert answer["error"] == "worker 1 has not followed yet"
    assert running.said("event=reloaded epoch=2")
    running.process.send_signal(signal.SIGQUIT)
    assert running.end() == 0


def test_reloads_in_a_loop_leave_nothing_behind(service: Make) -> None:
    running = service(workers=2)
    running.wait_ready()
    assert running.ask("reload")["ok"]
    pids = [running.process.pid, running.pid("worker", 0), running.pid("worker", 1)]
    before = [(len(descriptors(pid)), private_bytes(pid)) for pid in pids]
    for _ in range(RELOADS):
        assert running.ask("reload")["ok"]
    after = [(len(descriptors(pid)), private_bytes(pid)) for pid in pids]
    assert running.ask("status")["epoch"] == RELOADS + 2
    for (files, memory), (files_now, memory_now) in zip(before, after, strict=True):
        assert files_now <= files + 2
        assert memory_now <= memory + 2048 * 1024
    running.stop()
