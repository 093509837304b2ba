"""The verbs of the command line against a live service with two workers and a real server.

Each as a person runs it. Not here: what the supervisor does when a verb goes wrong
(`../process/test_verbs.py`). Next on the path: `test_pgbench.py`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.fix_postgres import PASSWORDS, Postgres, wait_until
from tests.fix_proxy import DEFAULT_AUTH, Proxy
from tests.postgres.traffic import backends, census, traffic
from tests.wire import Message, Wire, query

Maker = Callable[..., Proxy]
BUDGET = 8
USERS = ("app", "guest")
READING = ("status", "pools", "clients", "servers", "workers", "targets")
CHANGING = ("reload", "drain", "pause", "resume", "reconnect", "kill test", "kill-client 1")
SLEEPING = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE %s"

pytestmark = pytest.mark.timeout(300)


def service(proxy: Maker, server: Postgres, **more: Any) -> Proxy:
    """Start a proxy with two workers."""
    return proxy(server, **{"workers": 2, "pool": {"max_connections": BUDGET}} | more)


def told(front: Proxy, verb: str) -> Any:
    """Run a read verb with `--json` and return its rows, or what `status` tells."""
    done = front.run_verb(verb, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    return answer.get("rows", answer)


def verb(front: Proxy, *words: str) -> CompletedProcess[str]:
    """Run a verb that must succeed."""
    done = front.run_verb(*words)
    assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
    assert done.stderr == ""
    return done


def end_of(client: Wire) -> str:
    """Wait for the end of a connection and return the code of the error before it."""
    code = client.until("E")[-1].fields()["C"]
    assert client.rest() == b""
    client.sock.close()
    return code


@contextmanager
def beside(action: Callable[[], CompletedProcess[str]]) -> Iterator[Future[CompletedProcess[str]]]:
    """Run a verb that waits, in a thread beside the block."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(action)


def all_are_new(server: Postgres, before: set[int]) -> None:
    """Wait until none of these server processes is left."""
    wait_until(lambda: not before & backends(server, USERS), "all servers are new")


def answered(client: Wire) -> threading.Event:
    """Tell when the answer to a request that is under way has come."""
    event = threading.Event()

    def read() -> None:
        tags = [got.tag for got in client.until("Z")]
        if tags == ["T", "D", "C", "Z"]:
            event.set()

    threading.Thread(target=read, daemon=True).start()
    return event


def test_the_tables_tell_the_truth(postgres15: Postgres, proxy: Maker) -> None:
    """Clients, servers, pools, workers, targets and the status agree with the server."""
    front = service(proxy, postgres15)
    with ExitStack() as stack:
        apps = [stack.enter_context(front.wire("app", application_name=f"a{n}")) for n in range(4)]
        guests = [
            stack.enter_context(front.wire("guest", application_name=f"g{n}")) for n in range(2)
        ]
        apps[0].ask("BEGIN")
        held = int(apps[0].value("SELECT pg_backend_pid()") or 0)
        guests[0].send(query("SELECT 'slept' FROM pg_sleep(600)"))
        wait_until(
            lambda: "active" in {row["state"] for row in front.table("clients")}, "one sleeps"
        )
        clients = {row["application_name"]: row for row in told(front, "clients")}
        assert clients.keys() == {"a0", "a1", "a2", "a3", "g0", "g1"}
        assert {name: row["state"] for name, row in clients.items()} == {
            **dict.fromkeys(clients, "idle"),
            "a0": "idle_in_transaction",
            "g0": "active",
        }
        assert {row["worker"] for row in clients.values()} == {0, 1}
        assert len({row["id"] for row in clients.values()}) == 6
        assert (clients["a0"]["server_pid"], clients["a0"]["user"]) == (held, "app")
        assert clients["g1"]["database"] == "test"

        servers = told(front, "servers")
        pids = backends(postgres15, USERS)
        assert {row["pid"] for row in servers} == pids
        assert {row["pid"]: row["client"] for row in servers}[held] == clients["a0"]["id"]
        assert sum(row["state"] == "active" for row in servers) == 2

        pools = told(front, "pools")
        for user, number in (("app", 4), ("guest", 2)):
            [row] = [row for row in pools if row["user"] == user]
            assert (row["cl_total"], row["sv_active"]) == (number, 1)
        assert sum(row["sv_total"] for row in pools) == len(pids)

        workers = told(front, "workers")
        assert [row["pid"] for row in workers] == front.children()
        assert sum(row["clients"] for row in workers) == 6
        assert {row["state"] for row in workers} == {"serving"}
        [target] = told(front, "targets")
        assert target["addr"] == f"127.0.0.1:{postgres15.port}"
        assert (target["answers"], target["servers"]) == (True, len(pids))
        status = told(front, "status")
        assert (status["state"], status["workers"], status["clients"]) == ("serving", 2, 6)
        assert status["budget"]["held"] == len(pids)
        assert status["budget"]["allowed"] == BUDGET
        assert status["budget"]["free"] == BUDGET - len(pids)
        for table in READING[1:]:
            rows = told(front, table)
            lines = verb(front, table).stdout.splitlines()
            assert set(lines[0].split()) <= set(rows[0]), table
            assert len(lines) == 1 + len(rows), table
        assert "state" in verb(front, "status").stdout
        guests[0].close()


def test_a_broken_reload_shows_all_problems_and_changes_nothing(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Exit code 78; a good one afterwards counts."""
    front = service(proxy, postgres15)
    with front.wire("app") as client, traffic(front, 4) as load:
        good = front.config_path.read_text()
        broken = good.replace("max_connections", "max_conections")
        broken = broken.replace('engine = "postgresql"', 'engine = "oracle"')
        front.config_path.write_text(broken)
        before = told(front, "status")["epoch"]
        done = front.run_verb("reload")
        assert done.returncode == 78
        assert "max_conections" in done.stderr
        assert "proxy[0].engine" in done.stderr
        assert "nothing was changed" in done.stderr
        assert told(front, "status")["epoch"] == before
        assert client.value("SELECT 1") == "1"
        front.config_path.write_text(good.replace(f"{BUDGET}\n", "3\n"))
        assert verb(front, "reload").stdout.startswith("reload: ok")
        assert told(front, "status")["budget"]["allowed"] == 3
        wait_until(lambda: len(backends(postgres15, USERS)) <= 3, "three connections")
        load.wait(10)
        assert load.broken == []


def test_pause_waits_for_transactions_and_resume_lets_requests_go_on(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Of one database; the other one goes on."""
    front = service(proxy, postgres15)
    with (
        front.wire("app") as busy,
        front.wire("app") as idle,
        traffic(front, 4, databases=("postgres",)) as load,
    ):
        busy.ask("BEGIN")
        with beside(lambda: front.run_verb("pause", "test")) as paused:
            front.wait_log("event=paused")
            assert busy.value("SELECT 'goes on'") == "goes on"
            assert not paused.done()
            busy.ask("COMMIT")
            done = paused.result(30)
        assert done.returncode == 0, done.stderr
        assert told(front, "status")["state"] == "paused"
        idle.send(query("SELECT 'later'"))
        event = answered(idle)
        wait_until(lambda: sum(row["cl_waiting"] for row in front.table("pools")) == 1, "one waits")
        load.wait(20)
        assert not event.is_set()
        assert not postgres15.backends("usename = 'app' AND datname = 'test'")
        verb(front, "resume", "test")
        wait_until(event.is_set, "the request has gone on")
        assert busy.value("SELECT 1") == "1"
        assert load.broken == []


def test_a_pause_that_takes_too_long_says_how_many_are_busy(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Exit code 1; the transaction goes on and can end."""
    front = service(proxy, postgres15)
    with front.wire("app") as busy:
        busy.ask("BEGIN")
        done = front.run_verb("pause", "--timeout", "0.3")
        assert done.returncode == 1
        assert "1 still busy" in done.stderr
        assert busy.value("SELECT 1") == "1"
        busy.ask("COMMIT")
        verb(front, "pause")
        verb(front, "resume")
        assert busy.value("SELECT 1") == "1"


def test_reconnect_replaces_every_server_and_fails_nobody(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Under load, on both workers."""
    front = service(proxy, postgres15)
    with census(postgres15, BUDGET, *USERS), traffic(front, 16) as load:
        before = backends(postgres15, USERS)
        verb(front, "reconnect", "test")
        all_are_new(postgres15, before)
        load.wait(10)
        assert load.broken == []
        assert [guest.name for guest in load.guests if guest.ended] == []


def test_kill_ends_a_database_s_clients_and_new_ones_wait_for_resume(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Also those inside a transaction; the other database goes on."""
    front = service(proxy, postgres15)
    with traffic(front, 4, databases=("postgres",)) as load:
        idle, busy, asleep = (front.wire("app") for _ in range(3))
        busy.ask("BEGIN")
        asleep.send(query("SELECT pg_sleep(600)"))
        wait_until(lambda: postgres15.sql(SLEEPING, "%(600)%"), "asleep")
        assert "ended 3" in verb(front, "kill", "test").stdout
        assert [end_of(client) for client in (idle, busy, asleep)] == ["57P01"] * 3
        wait_until(lambda: not postgres15.backends("datname = 'test'"), "its servers are gone")
        # Its pool is gone, too: a new client waits for its login already.
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(front.wire, "app")
            load.wait(20)
            assert not late.done()
            verb(front, "resume", "test")
            with late.result(20) as client:
                assert client.value("SELECT 'later'") == "later"
        assert load.broken == []


def test_kill_client_ends_one_client_and_what_it_runs(postgres15: Postgres, proxy: Maker) -> None:
    """Nobody else is touched; a client that is not there is told so."""
    front = service(proxy, postgres15)
    with traffic(front, 6) as load:
        asleep = front.wire("app", application_name="asleep")
        asleep.send(query("SELECT pg_sleep(600)"))
        wait_until(lambda: postgres15.sql(SLEEPING, "%(600)%"), "asleep")
        [row] = [r for r in told(front, "clients") if r["application_name"] == "asleep"]
        verb(front, "kill-client", str(row["id"]))
        assert end_of(asleep) == "57P01"
        wait_until(lambda: not postgres15.sql(SLEEPING, "%(600)%"), "its statement has ended")
        again = front.run_verb("kill-client", str(row["id"]))
        assert again.returncode == 1
        assert "it has ended already" in again.stderr
        load.wait(10)
        assert load.broken == []
        assert [guest.name for guest in load.guests if guest.ended] == []


def test_drain_ends_the_service(postgres15: Postgres, proxy: Maker) -> None:
    """Clients end between two transactions; an open one is finished first; exit code 0."""
    front = service(proxy, postgres15)
    with traffic(front, 8) as load, front.wire("app") as busy:
        busy.ask("BEGIN")
        verb(front, "drain")
        wait_until(lambda: not load.running(), "all but one have ended")
        assert load.broken == []
        assert busy.value("SELECT 'goes on'") == "goes on"
        busy.ask("COMMIT")
        assert end_of(busy) == "57P01"
    assert front.process is not None
    assert front.process.wait(20) == 0
    for words in (*READING, *CHANGING):
        gone = front.run_verb(*words.split())
        assert gone.returncode == 69, words
        assert len(gone.stderr.splitlines()) == 1, gone.stderr


def test_a_user_removed_by_reload_is_ended_when_idle_and_refused_afterwards(
    postgres15: Postgres, proxy: Maker
) -> None:
    """An open transaction ends first; other users notice nothing."""
    front = service(proxy, postgres15)
    without = tuple(entry for entry in DEFAULT_AUTH if entry["user"] != "guest")
    with traffic(front, 4) as load:
        idle, busy = front.wire("guest"), front.wire("guest")
        assert idle.value("SELECT 1") == "1"
        busy.ask("BEGIN")
        front.rewrite(auth=without)
        verb(front, "reload")
        assert end_of(idle) == "57P01"
        assert "28P01" in front.refusal("guest", password="guess")
        assert busy.value("SELECT 'goes on'") == "goes on"
        assert outcome(busy.ask("COMMIT")) == "COMMIT"
        assert end_of(busy) == "57P01"
        load.wait(10)
        assert load.broken == []


def test_a_removed_user_does_not_wait_for_a_server_that_never_comes(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Its request was not sent, so it is told at once and not after the borrow timeout."""
    front = service(proxy, postgres15, pool={"max_connections": 1})
    without = tuple(entry for entry in DEFAULT_AUTH if entry["user"] != "guest")
    with front.wire("guest") as waiting, front.wire("guest") as holder:
        holder.ask("BEGIN")
        waiting.send(query("SELECT 1"))
        wait_until(lambda: sum(row["cl_waiting"] for row in front.table("pools")) == 1, "one waits")
        front.rewrite(auth=without)
        verb(front, "reload")
        assert end_of(waiting) == "57P01"
        assert outcome(holder.ask("COMMIT")) == "COMMIT"


def outcome(seen: list[Message]) -> str:
    """Return the command tag of a reply."""
    return next(got.body.rstrip(b"\0").decode() for got in seen if got.tag == "C")


def test_a_server_password_changes_without_a_restart_and_loses_no_client(
    postgres_copy: Callable[..., Postgres], proxy: Maker
) -> None:
    """ALTER ROLE and a reload under load; new servers log in with the new password."""
    server = postgres_copy()
    front = service(proxy, server)
    users = {user: {"password": text} for user, text in PASSWORDS.items()}
    with census(server, BUDGET, *USERS), traffic(front, 12) as load:
        for word in ("first", "second"):
            server.sql(f"ALTER ROLE app PASSWORD '{word}'")
            front.rewrite(users=users | {"app": users["app"] | {"server_password": word}})
            before = backends(server, USERS)
            verb(front, "reload")
            all_are_new(server, before)
            load.wait(10)
        assert load.broken == []
        assert [guest.name for guest in load.guests if guest.ended] == []
