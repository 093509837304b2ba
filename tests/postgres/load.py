"""Helpers for tests with many clients: run them, sample the server, keep its servers turning.

Not a load generator. Next on the path: `test_drivers.py`.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from tests.fix_postgres import Postgres
from tests.fix_proxy import Proxy
from tests.wire import WireError, batch, query

SAMPLE_EVERY_S = 0.02


def scale() -> float:
    """Return how much of the full amount of work to do: `PYPROXY_SCALE`, a tenth unless set."""
    return float(os.environ.get("PYPROXY_SCALE", "0.1"))


def seed() -> int:
    """Return the seed of this run: `PYPROXY_SEED`, a fresh one unless set; it is printed."""
    given = int(os.environ.get("PYPROXY_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"PYPROXY_SEED={given} replays this run")
    return given


T = TypeVar("T")


def run_clients(count: int, work: Callable[[int], T]) -> list[T]:
    """Run `work(0) … work(count - 1)`, each in a thread of its own; raise the first failure."""
    with ThreadPoolExecutor(count) as pool:
        return [done.result() for done in [pool.submit(work, n) for n in range(count)]]


def pgbench(server: Postgres, port: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pgbench on a port and return its output."""
    program = server.binaries / "pgbench"
    command = str(program) if program.exists() else shutil.which("pgbench")
    assert command, "pgbench is not installed"
    return subprocess.run(
        [command, "-h", server.host, "-p", str(port), "-U", "postgres", *arguments, "test"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@dataclass
class Peak:
    """The most server connections seen at a time, and how often they were counted."""

    most: int = 0
    samples: int = 0


@contextmanager
def sampled(server: Postgres, where: str) -> Iterator[Peak]:
    """Count the server's connections that match a condition all the while; give the peak."""
    peak = Peak()
    stop = threading.Event()
    connection = server.connect()

    def sample() -> None:
        with connection.cursor() as cursor:
            while not stop.wait(SAMPLE_EVERY_S):
                cursor.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                    f" AND application_name <> 'direct' AND ({where})"
                )
                peak.most = max(peak.most, (cursor.fetchone() or (0,))[0])
                peak.samples += 1

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        connection.close()


@contextmanager
def noise(proxy: Proxy, user: str, clients: int = 4) -> Iterator[None]:
    """Run clients that come, work in short transactions and go, so that servers change hands."""
    stop = threading.Event()

    def disturb(number: int) -> None:
        dice = random.Random(number)
        while not stop.is_set():
            try:
                with proxy.wire(user) as wire:
                    for _ in range(dice.randrange(1, 20)):
                        wire.send(dice.choice((query("SELECT 'noise'"), batch("SELECT 'noise'"))))
                        wire.until("Z")
            except (WireError, OSError):
                if not stop.is_set():
                    raise

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(disturb, n) for n in range(clients)]
        try:
            yield
        finally:
            stop.set()
        for done in running:
            done.result()
