"""Many workers that act as one proxy: any process may die, and only its own clients notice.

Real load all the while, and a census of the server's processes: never above the budget. What a
person orders is in `test_verbs.py`. Next on the path: `test_verbs.py`.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg2
import psycopg2.errors
import pytest

from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import DEFAULT_AUTH, Proxy
from tests.postgres.load import pgbench, run_clients, scale, seed
from tests.postgres.traffic import Guest, Traffic, backends, census, is_running, timed, traffic
from tests.wire import Wire, WireError, cancel_request, query, send_cancel

Maker = Callable[..., Proxy]
WORKERS = 3
BUDGET = 12
SLEEPING = "usename = 'app' AND wait_event = 'PgSleep'"
GUEST = {"user": "guest", "scheme": "trust"}

pytestmark = pytest.mark.timeout(900)


def service(proxy: Maker, server: Postgres, budget: int = BUDGET, **more: Any) -> Proxy:
    """Start a proxy with three workers (unless said) and a budget."""
    return proxy(server, **{"workers": WORKERS, "pool": {"max_connections": budget}} | more)


def homes(front: Proxy) -> dict[str, int]:
    """Return which worker has which client, by `application_name`."""
    return {row["application_name"]: row["worker"] for row in front.table("clients")}


def process_of(front: Proxy, worker: int) -> int:
    """Return a worker's process id."""
    return {row["worker"]: int(row["pid"]) for row in front.table("workers")}[worker]


def state_of(front: Proxy, client: str) -> str:
    """Return a client's state, by `application_name`."""
    states = [r["state"] for r in front.table("clients") if r["application_name"] == client]
    return states[0] if states else "none"


def split(load: Traffic, front: Proxy, worker: int) -> tuple[list[Guest], list[Guest]]:
    """Return the clients of a worker, and those of the others."""
    known = homes(front)
    own = [guest for guest in load.guests if known[guest.name] == worker]
    return own, [guest for guest in load.guests if guest not in own]


def faults(guests: list[Guest]) -> list[str]:
    """Return everything that went wrong for these clients, an orderly end included."""
    return [
        text for each in guests for text in (*each.broken, *each.refused, *map(str, each.ended))
    ]


@contextmanager
def sleepers(front: Proxy, count: int) -> Iterator[list[Wire]]:
    """Keep clients `sleeper-0` … with a statement that runs for ten minutes."""
    with ExitStack() as stack:
        made = []
        for number in range(count):
            made.append(
                stack.enter_context(front.wire("app", application_name=f"sleeper-{number}"))
            )
            made[-1].send(query("SELECT pg_sleep(600)"))
        names = [f"sleeper-{number}" for number in range(count)]
        wait_until(
            lambda: all(state_of(front, name) == "active" for name in names), "all sleep", 20
        )
        yield made


def cancelled(front: Proxy, client: Wire) -> str:
    """Cancel what a client runs and return the error that it gets."""
    send_cancel(front.host, front.port, client.pid, client.secret)
    errors = [got.fields()["C"] for got in client.until("Z") if got.tag == "E"]
    return errors[0] if errors else ""


def budget_is_whole(front: Proxy) -> bool:
    """Return whether no server connection is without an owner."""
    return int(front.ask("status", "stats.sock")["budget"]["orphaned"]) == 0


def test_a_killed_worker_takes_only_its_own_clients_along(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Its statements end, its permits come back, cancels elsewhere work, a new worker serves."""
    front = service(proxy, postgres15)
    with (
        census(postgres15, BUDGET, "app"),
        sleepers(front, 6) as asleep,
        traffic(front, 9, again=True) as load,
    ):
        known = homes(front)
        worker = known["sleeper-0"]
        own, others = split(load, front, worker)
        rows = [r for r in front.table("clients") if r["application_name"].startswith("sleeper")]
        orphans = [row["server_pid"] for row in rows if row["worker"] == worker]
        elsewhere = [n for n in range(6) if known[f"sleeper-{n}"] != worker]
        assert all((own, others, orphans, elsewhere))
        started = len(front.wait_log(rf"event=serving .*worker={worker}"))
        began = time.monotonic()
        os.kill(process_of(front, worker), signal.SIGKILL)
        assert [cancelled(front, asleep[n]) for n in elsewhere] == ["57014"] * len(elsewhere)
        front.wait_log(rf"event=serving .*worker={worker}", 3, started + 1)
        print(f"measured: a new worker after {time.monotonic() - began:.3f} s")
        buried = front.wait_log(rf"event=worker_buried worker={worker}")[0]
        assert int(buried.rpartition("permits=")[2]) >= len(orphans)
        wait_until(lambda: budget_is_whole(front), "no permit without an owner", 10)
        print(f"measured: all permits after {time.monotonic() - began:.3f} s")
        running = "SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s)"
        wait_until(lambda: not postgres15.sql(running, orphans), "its statements are gone", 10)
        print(f"measured: its statements gone after {time.monotonic() - began:.3f} s")
        load.wait(20)
        assert faults(others) == []
        assert all(len(guest.broken) == 1 for guest in own), faults(own)
        assert {"load-0", "load-1"} <= set(homes(front))
        # Those who lost their worker may all have come back before the new one served.
        with front.wire("app", application_name="newcomer") as newcomer:
            assert newcomer.value("SELECT 1") == "1"
            assert worker in homes(front).values()


def test_nobody_notices_the_death_of_the_controller_and_of_the_admin(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Both come back; the read verbs answer again."""
    front = service(proxy, postgres15)
    with census(postgres15, BUDGET, "app"), traffic(front, 16) as load:
        for name in ("controller", "admin"):
            [pid] = front.children(name)
            os.kill(pid, signal.SIGKILL)
            front.wait_log(f"event={name}_started", 10, 2)
            load.wait(10)
        wait_until(lambda: len(front.run_verb("clients").stdout.splitlines()) == 17, "rows", 20)
        load.wait(10)
        assert faults(load.guests) == []


def test_without_its_supervisor_the_service_goes_on_and_then_drains(
    postgres15: Postgres, proxy: Maker
) -> None:
    """No transaction fails for `orphan_timeout`; then each client ends between two of them."""
    orphan_s = max(3.0, 60 * scale())
    times = {"orphan_timeout": f"{orphan_s:.0f}s", "shutdown_timeout": "2s"}
    front = service(proxy, postgres15, supervisor=times)
    kinds = ("worker", "controller", "admin")
    pids = [pid for kind in kinds for pid in front.children(kind)]
    assert len(pids) == WORKERS + 2
    with census(postgres15, BUDGET, "app"), traffic(front, 16) as load:
        began = time.monotonic()
        assert front.process is not None
        front.process.kill()
        front.process.wait()
        front.expect_exit = -signal.SIGKILL
        wait_until(lambda: not load.running(), "every client has ended", orphan_s + 20)
        assert load.broken == []
        first = min(at for guest in load.guests for at in guest.ended) - began
        print(f"measured: the first client ended {first:.2f} s after the supervisor")
        assert orphan_s * 0.9 <= first
        assert all(len(guest.ended) == 1 for guest in load.guests)
        wait_until(lambda: not any(map(is_running, pids)), "no process is left", 60)
        print(f"measured: all processes gone after {time.monotonic() - began:.2f} s")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((front.host, front.port), timeout=5)


def test_a_stopped_worker_is_replaced_and_a_short_stop_forgiven(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Stopped for good it is killed after two looks; the others' transactions go on meanwhile."""
    front = service(proxy, postgres15)
    with census(postgres15, BUDGET, "app"), traffic(front, 15, again=True) as load:
        worker = homes(front)["load-0"]
        pid = process_of(front, worker)
        _, others = split(load, front, worker)
        os.kill(pid, signal.SIGSTOP)
        load.wait(50, others)
        os.kill(pid, signal.SIGCONT)
        load.wait(10)
        assert faults(load.guests) == []
        began = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        front.wait_log(f"event=worker_stuck worker={worker}", 60)
        print(f"measured: found stuck after {time.monotonic() - began:.2f} s")
        front.wait_log(rf"event=serving .*worker={worker}", 10, 2)
        wait_until(lambda: budget_is_whole(front), "no permit without an owner", 10)
        print(f"measured: replaced after {time.monotonic() - began:.2f} s")
        load.wait(20)
        assert faults(others) == []
        assert not is_running(pid)
        assert front.ask("status", "stats.sock")["workers"] == WORKERS


def test_reloads_in_a_loop_fail_nobody_and_take_effect(postgres15: Postgres, proxy: Maker) -> None:
    """The budget, a user and a listener come and go under load."""
    front = service(proxy, postgres15)
    assert front.process is not None
    second = f"unix:{front.folder}/run/second"
    without = tuple(entry for entry in DEFAULT_AUTH if entry["user"] != "guest")
    small = {"pool": {"max_connections": 8}, "auth": without, "more_listen": ()}
    large = {"pool": {"max_connections": 12}, "auth": (*without, GUEST), "more_listen": (second,)}
    rounds = max(10, int(1000 * scale()))

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(second.removeprefix("unix:")) == 0

    def serves_guest() -> bool:
        try:
            with front.wire("guest") as client:
                return client.value("SELECT 1") == "1"
        except WireError:
            return False

    def has_budget(budget: int) -> None:
        wait_until(lambda: len(backends(postgres15, ["app"])) == budget, f"a budget of {budget}")

    with census(postgres15, BUDGET, "app", "guest"), traffic(front, 24) as load:
        began = time.monotonic()
        for number in range(rounds):
            is_large = number % 2 == 1
            front.rewrite(**(large if is_large else small))
            answer = front.ask("reload")
            assert answer["ok"], answer
            assert listens() == is_large
            assert serves_guest() == is_large
            if number < 6:
                has_budget(12 if is_large else 8)
        took = time.monotonic() - began
        print(f"measured: {rounds} reloads in {took:.1f} s, {took / rounds * 1000:.0f} ms each")
        load.wait(10)
        assert faults(load.guests) == []


def test_a_drain_ends_each_client_between_two_transactions(
    postgres15: Postgres, proxy: Maker
) -> None:
    """SIGTERM under load: 57P01 for everybody, nothing broken, exit code 0."""
    front = service(proxy, postgres15)
    with census(postgres15, BUDGET, "app"), traffic(front, 24) as load:
        assert front.process is not None
        front.process.send_signal(signal.SIGTERM)
        timed("drain of 24 clients", lambda: wait_until(lambda: not load.running(), "all ended"))
        assert load.broken == []
        assert all(len(guest.ended) == 1 for guest in load.guests)
        assert front.process.wait(20) == 0


def test_workers_come_and_go_by_signal(postgres15: Postgres, proxy: Maker) -> None:
    """TTIN: one more serves. TTOU: one drains; its clients end between two transactions."""
    front = service(proxy, postgres15)
    with census(postgres15, BUDGET, "app"), traffic(front, 12, again=True) as load:
        assert front.process is not None
        front.process.send_signal(signal.SIGTTIN)
        front.wait_log(r"event=serving .*worker=3")
        with traffic(front, 6, name="late", again=True) as late:
            assert 3 in {home for name, home in homes(front).items() if name.startswith("late")}
            wait_until(lambda: faults(load.guests) == [], "nobody noticed")
            front.process.send_signal(signal.SIGTTOU)
            front.wait_log("event=worker_ended worker=3")
            late.wait(10)
            load.wait(10)
            assert (late.broken, load.broken) == ([], [])
            assert sum(len(guest.ended) for guest in late.guests) > 0
            assert 3 not in homes(front).values()


@pytest.mark.parametrize("version", ["pg15", "pg18"])
def test_all_that_the_server_allows_an_ordinary_user_is_used_and_no_more(
    version: str, postgres_copy: Callable[..., Postgres], proxy: Maker
) -> None:
    """`max_connections_percent = 100`, also after the server came back with a lower limit."""
    reserved = {"reserved_connections": "2"} if version == "pg18" else {}
    server = postgres_copy(version, max_connections="20", **reserved)
    most = 20 - 3 - (2 if reserved else 0)
    pool = {"max_connections": None, "max_connections_percent": 100}
    front = service(proxy, server, pool=pool, workers=4)
    with traffic(front, 40, pause_ms=30, again=True) as load:
        with census(server, most, "app"):
            wait_until(lambda: len(backends(server, ["app"])) == most, f"{most} connections")
            load.wait(5)
        assert faults(load.guests) == []
        server.stop()
        server.start(max_connections="12", **reserved)
        most -= 8
        wait_until(lambda: front.ask("status", "stats.sock")["budget"]["allowed"] == most, "limit")
        load.wait(2, seconds=60)
        wait_until(lambda: len(backends(server, ["app"])) <= most, "within the new limit")
        with census(server, most, "app") as counted:
            before = [len(guest.refused) + len(guest.broken) for guest in load.guests]
            load.wait(10)
            wait_until(lambda: counted.most == most, f"{most} connections")
            assert before == [len(guest.refused) + len(guest.broken) for guest in load.guests]


def test_one_connection_serves_the_clients_of_four_workers(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Everybody gets a turn, statements work on a server that travels, and nothing leaks."""
    front = service(proxy, postgres15, 1, workers=4)
    with census(postgres15, 1, "app"), traffic(front, 16, pause_ms=1) as load:
        assert len(set(homes(front).values())) == 4
        load.wait(max(20, int(300 * scale())))
        assert faults(load.guests) == []
        mean = sum(guest.busy_s for guest in load.guests) / load.done
        slowest = max(guest.slowest_s for guest in load.guests)
        print(f"measured: mean {mean * 1000:.1f} ms, slowest {slowest * 1000:.1f} ms")
        counts = sorted(guest.done for guest in load.guests)
        print(f"measured: transactions a client {counts}")
        handovers = wait_until(
            lambda: sum(row["handovers"] for row in front.table("workers")), "hand-overs"
        )
        print(f"measured: {handovers} hand-overs for {load.done} transactions")
        assert slowest < max(10 * mean, 1.0)
        assert counts[0] * 3 > counts[-1]


def test_a_cancel_hits_its_own_client_whichever_worker_it_reaches(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Twelve clients sleep; six are cancelled and nobody else; then the others."""
    front = service(proxy, postgres15)
    dice = random.Random(seed())
    with ExitStack() as stack, census(postgres15, BUDGET, "app"):
        clients = [
            stack.enter_context(front.connect("app", application_name=f"c-{n}"))
            for n in range(BUDGET)
        ]
        for client in clients:
            client.autocommit = True
        assert len(set(homes(front).values())) == WORKERS

        def sleep(number: int) -> str | None:
            with clients[number].cursor() as cursor:
                try:
                    cursor.execute("SELECT pg_sleep(30)")
                except psycopg2.Error as error:
                    return error.pgcode
            return None

        for _ in range(max(5, int(200 * scale()))):
            _cancel_all(postgres15, clients, sleep, dice)


def _cancel_all(
    server: Postgres, clients: list[Any], sleep: Callable[[int], str | None], dice: random.Random
) -> None:
    """One round: all sleep, half of them are cancelled, then the rest."""
    outcomes: dict[int, str | None] = {}

    def work(number: int) -> None:
        if number < len(clients):
            outcomes[number] = sleep(number)
            return
        # A signal that comes before the backend has begun does nothing, as without a proxy.
        wait_until(lambda: len(server.backends(SLEEPING)) == len(clients), "all sleep")
        order = dice.sample(range(BUDGET), BUDGET)
        for half in (order[: BUDGET // 2], order):
            for each in half:
                if each not in outcomes:
                    clients[each].cancel()
            wait_until(lambda: len(outcomes) >= len(half), "the cancelled ones end")  # noqa: B023
            assert outcomes == dict.fromkeys(half, "57014")

    run_clients(len(clients) + 1, work)


def test_a_cancel_of_a_driver_that_closes_at_once_reaches_its_client(
    postgres15: Postgres, proxy: Maker
) -> None:
    """Its request and its end arrive together, mostly at another worker: that has fewer clients."""
    front = service(proxy, postgres15)
    for _ in range(4 * WORKERS):
        # A new client each time: who does not wait may have the next query cancelled as well.
        with front.wire("app") as client:
            client.send(query("SELECT pg_sleep(30)"))
            wait_until(lambda: postgres15.backends(SLEEPING), "it sleeps")
            with socket.create_connection((front.host, front.port)) as asking:
                asking.sendall(cancel_request(client.pid, client.secret))
            assert [got.fields()["C"] for got in client.until("Z") if got.tag == "E"] == ["57014"]


def test_a_cancel_with_a_wrong_secret_does_nothing(postgres15: Postgres, proxy: Maker) -> None:
    """Whichever worker gets it, and whichever has the client."""
    front = service(proxy, postgres15)
    with ExitStack() as stack, census(postgres15, BUDGET, "app"):
        clients = [stack.enter_context(front.wire("app")) for _ in range(6)]
        for client in clients:
            client.send(query("SELECT 'slept' FROM pg_sleep(0.4)"))
        for client in clients:
            wrong = bytes(byte ^ 0x55 for byte in client.secret)
            send_cancel(front.host, front.port, client.pid, wrong)
            send_cancel(front.host, front.port, client.pid ^ 0x100, client.secret)
        for client in clients:
            assert [got.tag for got in client.until("Z")] == ["T", "D", "C", "Z"]


@pytest.mark.parametrize("clients", [16, 64])
def test_two_workers_share_the_load(clients: int, postgres15: Postgres, proxy: Maker) -> None:
    """Each of them serves 40 to 60 percent of pgbench's transactions.

    At a rate that leaves the processors time: at full load, on few cores, their scheduler decides
    which worker gets on, and two services that share nothing drift apart as far.
    """
    made = pgbench(postgres15, postgres15.port, "-i", "-s", "1", "-q")
    assert made.returncode == 0, made.stderr
    front = service(proxy, postgres15, 20, workers=2)
    threads = ("-c", str(clients), "-j", str(clients))
    amount = ("-R", "2000", "-T", str(max(2, int(20 * scale()))))
    with census(postgres15, 20, "postgres"):
        done = pgbench(postgres15, front.port, "-n", "-S", *threads, *amount)
    assert "failed transactions: 0" in done.stdout, done.stderr
    total = int(done.stdout.partition("actually processed: ")[2].split()[0])

    def served() -> list[int]:
        counts = [row["transactions"] for row in front.table("workers")]
        return counts if sum(counts) >= total else []

    counts = wait_until(served, "the workers' counters")
    share = counts[0] / sum(counts)
    print(f"measured: {clients} clients: {share:.0%} on one worker, {total} transactions")
    assert 0.4 <= share <= 0.6


def test_no_pool_starves_on_a_small_budget(postgres15: Postgres, proxy: Maker) -> None:
    """Two databases and two users, each to be kept warm, on three connections in three workers."""
    pool = {"max_connections": 3, "min_connections": 1}
    front = service(proxy, postgres15, pool=pool)
    users, databases = ("app", "guest"), ("test", "postgres")
    with (
        census(postgres15, 3, *users),
        traffic(front, 12, users=users, databases=databases, pause_ms=1) as load,
    ):
        began = time.monotonic()
        load.wait(max(5, int(50 * scale())), seconds=60)
        took = time.monotonic() - began
        counts = [guest.done for guest in load.guests]
        slowest = max(guest.slowest_s for guest in load.guests)
        print(f"measured: {took:.1f} s, transactions {counts}, slowest {slowest:.2f} s")
        assert faults(load.guests) == []
        assert slowest < 10
