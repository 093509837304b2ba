"""More attacks on many workers: what moves with a server, who may ask, who dies while asked.

Each test names the promise that somebody tries to break; none needs luck. The same with load and at
random is in `test_workers.py` and `test_tagged_rows.py`. Next on the path: `test_tagged_rows.py`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pyproxy.limits import CALLERS_MAX
from pyproxy.verbs.service import CONTROL, STATS
from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.postgres.fakes import CANCEL_REQUEST, FakeServer
from tests.postgres.load import run_clients
from tests.postgres.test_attacks_workers import AT_ONCE_S, GUEST, clients_at, process_of
from tests.postgres.traffic import backends, census, is_running, timed
from tests.processes import descriptors, waiting_clients
from tests.wire import (
    Message,
    Wire,
    batch,
    bind,
    cancel_request,
    copy_data,
    copy_done,
    copy_fail,
    execute,
    flush,
    parse,
    query,
    row,
    sync,
    tags,
)

Maker = Callable[..., Proxy]
WORKERS = 3
ROUNDS = 12
STOLEN = 40
"""Descriptors that a full mail box would keep, if they were lost: far fewer than it holds."""

pytestmark = pytest.mark.timeout(120)


def budget(front: Proxy) -> dict[str, int]:
    """Return how many permits there are in which state."""
    found: dict[str, int] = front.ask("status", STATS)["budget"]
    return found


def cells(messages: list[Message]) -> list[str]:
    """Return the first column of all rows."""
    return [(row(got)[0] or b"").decode() for got in messages if got.tag == "D"]


def copies_out(client: Wire, tag: str) -> None:
    """COPY TO STDOUT: only lines of its own, all of them."""
    answer = client.ask(f"COPY (SELECT '{tag}' FROM generate_series(1, 500)) TO STDOUT")
    lines = b"".join(got.body for got in answer if got.tag == "d").decode().split()
    assert lines == [tag] * 500


def copies_in(client: Wire, tag: str) -> None:
    """COPY FROM STDIN in many messages; they arrive in its own statement and in no other."""
    client.send(query("COPY moved FROM STDIN"))
    assert client.message().tag == "G"
    for _ in range(20):
        client.send(copy_data(f"{tag}\n".encode()))
    client.send(copy_done())
    assert tags(client.until("Z")) == "CZ"
    assert client.value(f"SELECT count(*) FROM moved WHERE tag = '{tag}'") == "20"


def gives_a_copy_up(client: Wire, tag: str) -> None:
    """CopyFail: the error is its own, and says what it said."""
    client.send(query("COPY moved FROM STDIN"), copy_data(b"never\n"), copy_fail(tag))
    began, failed, _ = client.until("Z")
    assert began.tag == "G"
    assert tag in failed.fields()["M"]


def pipelines(client: Wire, tag: str) -> None:
    """Five batches at once, one of which fails in its middle."""
    good = [batch("SELECT $1::text", [f"{tag}/{number}".encode()]) for number in range(4)]
    bad = batch("SELECT 1", end=parse("", "SELECT 1 / 0") + bind() + execute() + sync())
    client.send(*good[:2], bad, *good[2:])
    answer = client.until("Z", 5)
    assert cells(answer) == [f"{tag}/0", f"{tag}/1", "1", f"{tag}/2", f"{tag}/3"]
    assert [got.fields()["C"] for got in answer if got.tag == "E"] == ["22012"]


def goes_step_by_step(client: Wire, tag: str) -> None:
    """A batch with a Flush behind each message, and a portal that is read in parts."""
    client.send(parse("own", f"SELECT $1::text || n FROM generate_series(1, 6) n /* {tag} */"))
    client.send(flush(), bind("", "own", [tag.encode()]), execute("", 2), flush())
    assert cells(client.until("s")) == [f"{tag}1", f"{tag}2"]
    client.send(execute("", 0), sync())
    assert cells(client.until("Z")) == [f"{tag}{number}" for number in range(3, 7)]


def test_copies_and_pipelines_on_a_server_that_travels_stay_whole(
    postgres: Postgres, proxy: Maker
) -> None:
    """One server for the clients of three workers, which all stream and pipeline at once."""
    postgres.sql("CREATE TABLE IF NOT EXISTS moved (tag text)")
    postgres.sql("TRUNCATE moved; GRANT ALL ON moved TO PUBLIC")
    front = proxy(postgres, workers=WORKERS, pool={"max_connections": 1})
    work = (copies_out, copies_in, gives_a_copy_up, pipelines, goes_step_by_step)

    def serve(number: int) -> None:
        for turn in range(ROUNDS):
            with front.wire("guest", application_name=f"mover-{number}") as client:
                for step in range(len(work)):
                    work[(number + turn + step) % len(work)](client, f"c{number}/{turn}/{step}")

    with census(postgres, 1, "guest"):
        run_clients(2 * WORKERS, serve)
    wait_until(
        lambda: sum(row["handovers"] for row in front.table("workers")) > WORKERS, "it travelled"
    )
    assert postgres.sql("SELECT count(*) FROM moved WHERE tag = 'never'") == [(0,)]


PINS = {
    "temporary table": ("CREATE TEMP TABLE mine AS SELECT 1 AS one", "DISCARD TEMP"),
    "listen": ("LISTEN mine", "UNLISTEN *"),
    "advisory lock": ("SELECT pg_advisory_lock(815)", "DISCARD ALL"),
}
TRACES = """SELECT (SELECT count(*) FROM pg_class WHERE relname = 'mine')
    + (SELECT count(*) FROM pg_listening_channels())
    + (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')"""


@pytest.mark.parametrize("end", ["unpins", "leaves", "is reset"])
@pytest.mark.parametrize("pin", PINS)
def test_a_pinned_server_moves_only_when_its_pin_has_ended(
    pin: str, end: str, postgres15: Postgres, proxy: Maker
) -> None:
    """The other worker's client waits until then, and finds nothing of the pinned one."""
    front = proxy(postgres15, workers=2, pool={"max_connections": 1})
    begin, undo = PINS[pin]
    with clients_at(front, 0, 1) as (owner, other):
        owner.ask(begin)
        backend = owner.value("SELECT pg_backend_pid()")
        other.send(query(TRACES))
        wait_until(lambda: budget(front)["held"] == 1, "the server")
        waiting = [row["worker"] for row in front.table("clients") if row["state"] == "waiting"]
        assert waiting == [1]
        for _ in range(20):
            assert owner.value("SELECT pg_backend_pid()") == backend
        assert other.quiet(0)
        if end == "unpins":
            owner.ask(undo)
        elif end == "leaves":
            owner.close()
        else:
            owner.reset()
        assert cells(other.until("Z")) == ["0"]


def test_a_target_that_moves_takes_everybody_along_between_two_transactions(
    postgres15: Postgres, postgres_copy: Callable[..., Postgres], proxy: Maker
) -> None:
    """Open transactions end where they began; then no connection to the old target is left."""
    old, new = postgres15, postgres_copy()
    front = proxy(old, workers=WORKERS, pool={"max_connections": 2})
    port = "SELECT current_setting('port')"
    with clients_at(front, 0, 1, 2) as clients:
        inside, waits, idle = clients
        assert idle.value(port) == str(old.port)
        for client in (inside, waits):
            client.ask("BEGIN")
            assert client.value(port) == str(old.port)
        front.rewrite(target=new)
        assert front.ask("reload")["ok"]
        idle.send(query(port))  # both permits are in use
        for client in (inside, waits):
            assert client.value(port) == str(old.port)
            client.ask("COMMIT")
        assert cells(idle.until("Z")) == [str(new.port)]
        assert [client.value(port) for client in clients] == [str(new.port)] * 3
        wait_until(lambda: not backends(old, ["guest"]), "the old target is left alone")
        wait_until(lambda: budget(front)["orphaned"] == 0, "no permit without an owner")
        assert len(backends(new, ["guest"])) <= 2


class Deaf(FakeServer):
    """Does not care for Terminate, nor for the end of a connection."""

    def serve(self, connection: socket.socket) -> None:
        """Answer, then stay."""
        head = connection.recv(8, socket.MSG_PEEK)
        super().serve(connection)
        if not head.endswith(CANCEL_REQUEST):
            wait_until(lambda: self.closing, "the test is over", 60)


def test_a_server_that_never_closes_does_not_hold_up_a_stop(proxy: Maker) -> None:
    """Its permit stays taken while it may live, and a stop takes no notice of it."""
    with Deaf() as server:
        front = proxy(server, workers=WORKERS, pool={"max_connections": 2}, auth=GUEST)
        with clients_at(front, 0, 1, 2) as clients:
            assert [client.value("hello") for client in clients] == ["hello"] * 3
            held = budget(front)["held"]
            assert front.ask("reconnect")["ok"]
            assert budget(front)["held"] == held
        assert timed("stop", front.stop) < AT_ONCE_S


@contextmanager
def half_requests(front: Proxy, name: str) -> Iterator[list[socket.socket]]:
    """Fill a socket of the verbs with callers that do not get on, its queue included."""
    with ExitStack() as stack:
        callers: list[socket.socket] = []
        while len(callers) < 10 * CALLERS_MAX:
            caller = stack.enter_context(socket.socket(socket.AF_UNIX))
            caller.setblocking(False)  # a full queue is an error then
            try:
                caller.connect(str(front.runtime_dir / name))
                caller.send(b'{"verb": ')
            except BlockingIOError:
                break
            callers.append(caller)
        yield callers


@pytest.mark.parametrize("name", [CONTROL, STATS])
def test_too_many_callers_of_a_socket_wait_for_their_turn(
    name: str, postgres15: Postgres, proxy: Maker
) -> None:
    """Callers with half a request keep a verb waiting, not out, and cost no log and no memory."""
    front = proxy(postgres15)
    with half_requests(front, name) as callers, ThreadPoolExecutor(1) as pool:
        assert CALLERS_MAX < len(callers) < 4 * CALLERS_MAX
        before = front.log()
        asked = pool.submit(front.ask, "status", name)
        with front.wire("guest") as client:
            assert client.value("SELECT 1") == "1"
        assert not asked.done()
        for caller in callers:
            caller.close()
        assert asked.result(AT_ONCE_S)["ok"]
        assert front.log() == before


def test_a_verb_whose_admin_process_dies_ends_with_69(postgres15: Postgres, proxy: Maker) -> None:
    """Killed while it waits for a worker: one line for the caller, and the next one is answered."""
    front = proxy(postgres15, workers=2)
    stopped = process_of(front, 1)
    [admin] = front.children("admin")
    os.kill(stopped, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(front.run_verb, "clients")
        wait_until(lambda: any("pyproxy rows" in each for each in descriptors(admin)), "it asks")
        os.kill(admin, signal.SIGKILL)
        os.kill(stopped, signal.SIGCONT)
        ended = asked.result()
    assert (ended.returncode, ended.stdout) == (69, "")
    assert "ended the connection without an answer" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    front.wait_log("event=admin_started", count=2)
    assert front.run_verb("clients").returncode == 0


def test_a_reload_whose_supervisor_dies_ends_with_69_and_clients_go_on(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Killed when one worker has the new settings and the other has not."""
    front = proxy(postgres15, workers=2, supervisor={"orphan_timeout": "30s"})
    assert front.process is not None
    with clients_at(front, 0, 1) as clients, ThreadPoolExecutor(1) as pool:
        for client in clients:
            client.ask("BEGIN")
        behind = process_of(front, 1)
        workers = front.children()
        os.kill(behind, signal.SIGSTOP)
        asked = pool.submit(front.run_verb, "reload")
        wait_until(
            lambda: {row["epoch"] for row in front.table("workers")} == {1, 2}, "half a reload"
        )
        front.process.kill()
        front.process.wait()
        front.process = None
        os.kill(behind, signal.SIGCONT)
        ended = asked.result()
        assert ended.returncode == 69
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        again = front.run_verb("reload")
        assert again.returncode == 69
        assert "is it running?" in again.stderr
        shown = front.run_verb("status")
        assert shown.returncode == 1
        assert "no supervisor" in shown.stdout
        for client in clients:
            assert client.value("SELECT 1") == "1"
            client.ask("COMMIT")
        left = (*workers, *front.children("admin"), *front.children("controller"))
        for pid in left:
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not any(map(is_running, left)), "all have ended")


def stuck_file(front: Proxy) -> None:
    """Make the configuration one that cannot be read to its end."""
    front.config_path.unlink()
    os.mkfifo(front.config_path)


def children_of(pid: int) -> set[int]:
    """Return the process ids of a process's children."""
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_stop_in_the_middle_of_a_reload_ends_both(postgres15: Postgres, proxy: Maker) -> None:
    """Whoever reloads is told so, the child that reads is gone, transactions end first."""
    front = proxy(postgres15, workers=2)
    assert front.process is not None
    before = children_of(front.process.pid)
    stuck_file(front)
    with front.wire("guest") as client, ThreadPoolExecutor(2) as pool:
        client.ask("BEGIN")
        asked = [pool.submit(front.ask, "reload") for _ in range(2)]
        [reader] = wait_until(
            lambda: front.process and children_of(front.process.pid) - before, "a child reads"
        )
        front.process.send_signal(signal.SIGTERM)
        for each in asked:
            answer = each.result(AT_ONCE_S)
            assert (answer["exit"], answer["error"]) == (69, "the service is stopping")
        for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGUSR1):
            front.process.send_signal(number)
        assert client.value("SELECT 1") == "1"
        client.ask("COMMIT")
        assert front.process.wait(AT_ONCE_S) == 0
    front.process = None
    assert not is_running(reader)
    assert "fault" not in front.log()


READS_FOR_EVER = """
import sys
from pyproxy.supervisor import loading
loading.LOAD_S, loading.KILL_AFTER_S = 0.5, 0.5
try:
    loading.Loading(sys.argv[1], ()).take()
except loading.ConfigRefusedError as refused:
    print(refused)
"""


def test_a_child_that_reads_for_ever_ends_without_its_supervisor(tmp_path: Path) -> None:
    """It ends itself: the one who would kill it may be dead."""
    fifo = tmp_path / "pyproxy.toml"
    os.mkfifo(fifo)
    program = [sys.executable, "-c", READS_FOR_EVER, str(fifo)]
    ended = subprocess.run(program, capture_output=True, text=True, check=False, timeout=30)
    assert "the check of the configuration died" in ended.stdout, ended.stderr


def test_mail_for_a_worker_that_hangs_keeps_nobody_waiting_and_leaks_nothing(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Its box gets full of connections; when it is killed they are closed, all of them."""
    front = proxy(postgres15, workers=2, pool={"max_connections": 2})
    assert front.process is not None
    with clients_at(front, 0, 1) as (other, victim):
        assert other.value("SELECT 1") == "1"
        stopped, lives = process_of(front, 1), process_of(front, 0)
        before = [len(descriptors(pid)) for pid in (front.process.pid, lives)]
        os.kill(stopped, signal.SIGSTOP)
        with ExitStack() as stack:
            for number in range(20 * STOLEN):
                caller = stack.enter_context(socket.create_connection((front.host, front.port)))
                caller.sendall(cancel_request(victim.pid, b"none"))
                if number % STOLEN == 0:
                    assert other.value("SELECT 1") == "1"
            # The kernel may have woken the worker that hangs for them; the other one looks, too.
            wait_until(lambda: waiting_clients(front.port) == 0, "all are accepted", 3.0)
            os.kill(stopped, signal.SIGKILL)
            buried = front.wait_log("event=worker_buried worker=1")[0]
        assert int(buried.partition("descriptors=")[2].split()[0]) > STOLEN
        front.wait_log("event=serving .*worker=1", count=2)
        assert other.value("SELECT 1") == "1"

        def is_as_before() -> bool:
            assert front.process is not None
            now = [len(descriptors(pid)) for pid in (front.process.pid, lives)]
            return all(b - a < STOLEN for a, b in zip(before, now, strict=True))

        wait_until(is_as_before, "no descriptor is left over")
