"""Attacks on many workers: on hand-overs, on reclaimed permits, on lost mail, on the supervisor.

Each test names the promise that somebody tries to break. What a hostile peer says to one worker is
in `test_hostile.py`. Next on the path: `test_tagged_rows.py`.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from pyproxy.verbs.service import CONTROL
from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.postgres.fakes import FakeServer, Relay, answer
from tests.postgres.load import sampled
from tests.wire import Message, Wire, parse, query, sync

Maker = Callable[..., Proxy]
GUEST = ({"user": "guest", "scheme": "trust"},)
STATEMENTS = 14_000
"""Their names are longer than a mail (192 KiB, 16 bytes each)."""
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


def prepare(client: Wire, first: int, count: int) -> None:
    """Prepare statements that nobody else has."""
    for start in range(first, first + count, 1000):
        numbers = range(start, min(start + 1000, first + count))
        client.send(*[parse(f"s{n}", f"SELECT {n}") for n in numbers], sync())
        assert all(got.tag in "1Z" for got in client.until("Z"))


def test_a_server_with_more_statements_than_a_mail_holds_keeps_nobody_waiting(
    postgres15: Postgres, proxy: Maker
) -> None:
    """It is closed instead of handed over; neither worker spins, no client is lost."""
    pool = {"max_connections": 1, "max_prepared_statements": 100_000}
    front = proxy(postgres15, workers=2, pool=pool)
    before = front.children()
    with clients_at(front, 0, 0, 1) as (one, two, other):
        prepare(one, 0, STATEMENTS // 2)
        prepare(two, STATEMENTS // 2, STATEMENTS // 2)
        began = time.monotonic()
        assert other.value("SELECT 42") == "42"
        assert time.monotonic() - began < AT_ONCE_S
        assert one.value("SELECT 43") == "43"
    assert front.children() == before


class HalfMessage(FakeServer):
    """Begins another message behind each answer, and never ends it."""

    def reply(self, wire: Wire, got: Message) -> bool:
        """Answer a question, then say half a ParameterStatus."""
        if got.body[:-1] != b"half":
            return super().reply(wire, got)
        wire.send(answer("row") + b"S\0\0")
        return True


def test_half_a_message_of_an_idle_server_keeps_no_other_worker_waiting(proxy: Maker) -> None:
    """A server that cannot be handed over as it stands makes room for another."""
    with HalfMessage() as server:
        front = proxy(server, workers=2, pool={"max_connections": 1}, auth=GUEST)
        with clients_at(front, 0, 1) as (first, second):
            assert first.value("half") == "row"
            began = time.monotonic()
            assert second.value("half") == "row"
            assert time.monotonic() - began < AT_ONCE_S


class Gate(Relay):
    """A relay whose accept queue can be full: connects then hang, as over a very long way."""

    def __init__(self, target: Postgres) -> None:
        """Stand in front of `target`."""
        super().__init__(target)
        self.sock.listen(0)
        self.sock.settimeout(0.02)
        self.lets_in = threading.Event()
        self.lets_in.set()
        self.fillers: list[socket.socket] = []

    def _accept(self) -> None:
        while not self.closing:
            if not self.lets_in.wait(0.1):
                continue
            try:
                connection, _ = self.sock.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            connection.settimeout(None)
            self.connections.append(connection)
            self._run(self._serve, connection)

    def shut(self) -> None:
        """Let nobody in any more: the queue fills up."""
        self.lets_in.clear()

        def is_full() -> bool:
            filler = socket.socket()
            self.fillers.append(filler)
            filler.settimeout(0.2)
            try:
                filler.connect((self.host, self.port))
            except TimeoutError:
                return True
            return False

        wait_until(is_full, "nobody gets in")

    def open(self) -> None:
        """Let everybody in again."""
        for filler in self.fillers:
            filler.close()
        self.lets_in.set()


def sleeping(server: Postgres) -> int:
    """Return how many statements of the clients sleep."""
    return len(server.backends("usename = 'guest' AND wait_event = 'PgSleep'"))


def test_a_dead_workers_permit_is_not_free_before_its_cancel_has_arrived(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Where a connect hangs, what the dead worker left running still counts."""
    with Gate(postgres15) as gate:
        front = proxy(gate, workers=2, pool={"max_connections": 2}, auth=GUEST)
        with (
            sampled(postgres15, "usename = 'guest'") as peak,
            clients_at(front, 0, 0, 1) as (one, two, other),
        ):
            for client in (one, two):
                client.send(query("SELECT pg_sleep(60)"))
            wait_until(lambda: sleeping(postgres15) == 2, "both statements run")
            gate.shut()
            os.kill(process_of(front, 0), signal.SIGKILL)
            front.wait_log("event=worker_buried worker=0")
            other.send(query("SELECT 'after'"))
            assert other.quiet(1.0), "no permit is free yet"
            gate.open()
            other.until("Z")
            wait_until(lambda: sleeping(postgres15) == 0, "what it left running was cancelled")
        assert peak.most == 2, peak


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
