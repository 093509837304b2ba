"""The verbs show and change a running service, and say what did not answer.

The engine is a stand-in (`stand_in.py`) that echoes. Next on the path: `test_memory.py`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyproxy.verbs.service import STATS
from tests.fix_postgres import wait_until
from tests.process.harness import Service, services

Make = Callable[..., Service]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Make]:
    """Return a function that starts a service; nothing of it is left after the test."""
    with services(tmp_path) as make:
        yield make


@pytest.fixture
def connect() -> Iterator[Callable[[Service], socket.socket]]:
    """Return a function that makes a client of a service."""
    with ExitStack() as stack:

        def connect(running: Service) -> socket.socket:
            client = socket.create_connection(("127.0.0.1", running.port), timeout=10)
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            return stack.enter_context(client)

        yield connect


Connect = Callable[[Service], socket.socket]


def test_clients_of_all_workers_are_shown_with_their_worker(
    service: Make, connect: Connect
) -> None:
    running = service(workers=2)
    running.wait_ready()
    for _ in range(6):
        connect(running)
    rows = running.rows("clients")
    assert len(rows) == 6
    incarnations = {row["worker"]: row["incarnation"] for row in running.rows("workers")}
    assert all(row["id"] // 1_000_000_000 == incarnations[row["worker"]] for row in rows)
    shown = running.run_verb("clients")
    assert shown.returncode == 0
    assert len(shown.stdout.splitlines()) == 7
    assert "\x1b" not in shown.stdout
    running.stop()


def test_a_worker_that_does_not_answer_is_named_and_the_rest_is_shown(
    service: Make, connect: Connect
) -> None:
    running = service(workers=2)
    running.wait_ready()
    client = connect(running)
    (row,) = running.rows("clients")
    silent = 1 - row["worker"]
    os.kill(running.pid("worker", silent), signal.SIGSTOP)
    shown = running.run_verb("clients")
    assert shown.returncode == 1
    assert shown.stderr == f"pyproxy: no answer from worker {silent}\n"
    assert str(row["id"]) in shown.stdout
    client.close()
    os.kill(running.pid("worker", silent), signal.SIGCONT)
    running.stop()


def test_status_is_one_picture_of_the_service(service: Make) -> None:
    running = service(workers=2)
    running.wait_ready()
    told = json.loads(running.run_verb("status", "--json").stdout)
    assert (told["state"], told["workers"], told["pid"]) == ("serving", 2, running.process.pid)
    assert told["budget"]["capacity"] > 0
    assert f"127.0.0.1:{running.port}" in told["listeners"]
    plain = running.run_verb("status")
    assert plain.returncode == 0
    assert plain.stdout.startswith("state ")
    running.stop()


def test_pause_waits_for_what_runs_and_resume_undoes_it(service: Make, connect: Connect) -> None:
    running = service()
    running.wait_ready()
    client = connect(running)
    early = running.run_verb("pause", "--timeout", "0.2")
    assert early.returncode == 1
    assert "1 still busy" in early.stderr
    assert running.ask("status")["state"] == "paused"
    client.close()
    assert running.run_verb("pause").returncode == 0
    assert running.run_verb("resume").returncode == 0
    again = running.run_verb("resume", "shop")
    assert again.returncode == 1
    assert "database 'shop' is not paused" in again.stderr
    running.stop()


def test_a_worker_that_starts_while_paused_is_paused(service: Make) -> None:
    running = service()
    running.wait_ready()
    running.process.send_signal(signal.SIGUSR1)
    running.wait_said("event=paused")
    old = running.pid("worker", 0)
    os.kill(old, signal.SIGKILL)
    running.wait_new_pid("worker", old, 0)
    running.wait_said("event=serving .*epoch=2")
    running.process.send_signal(signal.SIGUSR2)
    running.wait_said("event=resumed")
    running.stop()


def test_kill_ends_the_clients_and_leaves_the_database_paused(
    service: Make, connect: Connect
) -> None:
    running = service(workers=2)
    running.wait_ready()
    clients = [connect(running) for _ in range(4)]
    answer = running.ask("kill", database="*")
    assert (answer["ok"], answer["ended"]) == (True, 4)
    assert all(client.recv(1) == b"" for client in clients)
    assert running.ask("status")["paused"] == ["*"]
    running.stop()


def test_kill_client_ends_that_one_only(service: Make, connect: Connect) -> None:
    running = service(workers=2)
    running.wait_ready()
    for _ in range(4):
        connect(running)
    chosen = running.rows("clients")[0]["id"]
    assert running.run_verb("kill-client", str(chosen)).returncode == 0
    wait_until(lambda: len(running.rows("clients")) == 3, "one client has ended")
    again = running.run_verb("kill-client", str(chosen))
    assert again.returncode == 1
    assert f"no client {chosen}: it has ended already" in again.stderr
    nobody = running.run_verb("kill-client", str(99 * 1_000_000_000 + 1))
    assert "its worker has ended" in nobody.stderr
    running.stop()


def test_reconnect_is_an_epoch_that_all_follow(service: Make) -> None:
    running = service(workers=2)
    running.wait_ready()
    answer = running.ask("reconnect", database="shop")
    assert answer == {"ok": True, "database": "shop", "epoch": 2}
    running.stop()


def test_drain_ends_the_service_as_term_does(service: Make, connect: Connect) -> None:
    running = service(drain="60s")
    running.wait_ready()
    client = connect(running)
    assert running.run_verb("drain").returncode == 0
    running.wait_said("event=signal signal=SIGTERM at_once=false")
    assert running.ask("status")["state"] == "draining"
    refused = running.ask("pause")
    assert (refused["ok"], refused["exit"]) == (False, 69)
    client.close()
    assert running.end() == 0


def test_the_admin_process_away_is_told_and_status_still_answers(service: Make) -> None:
    running = service()
    running.wait_ready()
    os.kill(running.pid("admin"), signal.SIGSTOP)
    status = running.run_verb("status")
    assert status.returncode == 1
    assert "no answer from the admin process" in status.stderr
    assert "serving" in status.stdout
    os.kill(running.pid("admin"), signal.SIGCONT)
    running.stop()


def test_the_supervisor_away_is_told_and_workers_are_still_shown(service: Make) -> None:
    running = service(orphan="30s")
    running.wait_ready()
    os.kill(running.process.pid, signal.SIGSTOP)
    shown = running.run_verb("workers")
    assert shown.returncode == 1
    assert "no answer from the supervisor" in shown.stderr
    assert running.ask("status", STATS)["state"] == "no supervisor"
    os.kill(running.process.pid, signal.SIGCONT)
    running.stop()


def test_other_users_are_kept_out(service: Make) -> None:
    running = service()
    running.wait_ready()
    for name in ("control.sock", "stats.sock"):
        assert (running.folder / "run" / name).stat().st_mode & 0o777 == 0o600
    running.stop()
