"""Thousands of idle clients beside busy ones: memory stays flat, nobody is forgotten.

Busy clients run one statement after the other and each must be answered soon, all the time: a
wake-up that is lost shows as one that is not. In the end all idle clients speak, and leave, in one
moment, far more than a worker can be told of at once. `PYPROXY_SCALE=1` is 10,000 clients and five
minutes. Not here: throughput (`../../bench/run.py`). Next on the path: `test_pgbench.py`.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest

from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.postgres.load import scale
from tests.wire import Wire, batch, query, row, split

IDLE, BUSY, SECONDS = (10_000, 200, 300.0) if scale() >= 1 else (1_000, 40, 5.0)
SERVERS = 20
WAIT_MAX_S = 10.0
GROWTH_MAX, GROWTH_BYTES = 0.05, 1 << 20
LARGE = 100_000


class OwnTime:
    """Seconds that passed while this process ran: a machine that stops for a while adds none."""

    STEP_MAX_S = 0.5

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.passed = 0.0

    def now(self) -> float:
        """Return the seconds since the start; called far more often than every half second."""
        now = time.monotonic()
        self.passed += min(now - self.last, self.STEP_MAX_S)
        self.last = now
        return self.passed


@dataclass
class Busy:
    """A client that always has one statement under way and checks each answer."""

    wire: Wire
    number: int
    sent_at: float = 0.0
    longest_s: float = 0.0
    done: int = 0
    heard: bytearray = field(default_factory=bytearray)

    def tag(self) -> str:
        """Return what the statement under way asks for first."""
        return f"{self.number}-{self.done}."

    def speak(self, now: float) -> None:
        """Send the next statement: simple, extended, or one with a large answer."""
        self.sent_at = now
        kind = self.done % 10
        filler = f" || repeat('x', {LARGE})" if kind == 9 else ""
        text = f"SELECT '{self.tag()}'{filler}"
        self.wire.send(batch(text) if kind % 2 else query(text))
        self.wire.sock.setblocking(False)

    def hear(self, now: float) -> bool:
        """Receive; return whether the answer is there, and check it."""
        data = self.wire.sock.recv(1 << 17)
        assert data, f"client {self.number} was closed: {bytes(self.heard)!r}"
        self.heard += data
        if not self.heard.endswith(b"Z\0\0\0\5I"):
            return False
        messages, rest = split(bytes(self.heard))
        assert not rest
        rows = [row(each) for each in messages if each.tag == "D"]
        wanted = self.tag().encode() + b"x" * (LARGE if self.done % 10 == 9 else 0)
        assert rows == [[wanted]], f"client {self.number}: {messages!r:.300}"
        self.heard.clear()
        self.longest_s = max(self.longest_s, now - self.sent_at)
        self.done += 1
        return True


def keep_busy(clients: list[Busy], seconds: float, own: OwnTime) -> None:
    """Run statements on all clients for so long, then let the last ones be answered."""
    end = own.now() + seconds
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.wire.sock, selectors.EVENT_READ, client)
            client.speak(own.now())
        under_way = len(clients)
        while under_way:
            for key, _ in selector.select(OwnTime.STEP_MAX_S / 5):
                client = key.data
                if client.hear(own.now()):
                    if own.now() < end:
                        client.speak(own.now())
                    else:
                        selector.unregister(client.wire.sock)
                        under_way -= 1
            now = own.now()
            late = [key.data for key in selector.get_map().values()]
            late = [each for each in late if now - each.sent_at > WAIT_MAX_S]
            assert not late, f"not answered within {WAIT_MAX_S:g} s: {late[:3]!r:.500}"


@contextmanager
def at_once(worker: int) -> Iterator[None]:
    """Let a worker find all that happens in the block in one moment."""
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def clients_of(front: Proxy) -> int:
    """Return how many clients the service counts."""
    return sum(int(each["clients"]) for each in front.table("workers"))


@pytest.mark.timeout(1200)
def test_thousands_of_idle_clients_cost_busy_ones_nothing_and_none_is_forgotten(
    postgres15: Postgres, proxy: Callable[..., Proxy]
) -> None:
    """Flat memory, no statement that waits, and everybody is served who speaks at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < IDLE + 1_000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, IDLE + 1_000), hard))
    pool = {"max_connections": SERVERS}
    front = proxy(postgres15, pool=pool, max_clients=IDLE + BUSY + 10)
    worker, own = front.worker, OwnTime()
    with ExitStack() as stack:
        busy = [Busy(stack.enter_context(front.wire()), number) for number in range(BUSY)]
        idle = [stack.enter_context(front.wire()) for _ in range(IDLE)]
        keep_busy(busy, SECONDS / 5, own)
        early = front.rss_bytes()
        keep_busy(busy, SECONDS * 4 / 5, own)
        late = front.rss_bytes()
        done, longest = sum(each.done for each in busy), max(each.longest_s for each in busy)
        least = min(each.done for each in busy)
        print(f"{IDLE} idle, {BUSY} busy, {SECONDS:g} s: {done} statements, {least} at least each")
        print(f"longest wait {longest:.3f} s; private bytes {early} early, {late} late")
        assert abs(late - early) < max(GROWTH_MAX * early, GROWTH_BYTES)
        with at_once(worker):
            for number, each in enumerate(idle):
                each.send(query(f"SELECT 'idle {number}'"))
        for number, each in enumerate(idle):
            (answer,) = [row(got) for got in each.until("Z") if got.tag == "D"]
            assert answer == [f"idle {number}".encode()]
        with at_once(worker):
            for each in idle:
                each.sock.close()
        wait_until(lambda: clients_of(front) == BUSY, "the service knows who has left")
        keep_busy(busy, 0.5, own)
    assert front.worker == worker
