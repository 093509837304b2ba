"""Which way of waiting for sockets the service takes, and how an operator learns of it.

Not here: what the two drivers do (`rust/engine`). Next on the path: `../forbid.py`.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from errno import ENOSYS
from functools import partial
from pathlib import Path

import pytest

from pyproxy import _core
from tests.fix_postgres import wait_until
from tests.forbid import ENTER, REGISTER, SETUP, forbid_io_uring, limit_locked_memory
from tests.process.harness import Service
from tests.processes import descriptors, parents

needs_io_uring = pytest.mark.skipif(
    (missing := _core.io_uring_missing()) is not None, reason=f"io_uring: {missing}"
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service that is not started yet."""
    made = Service(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


def shown(service: Service) -> tuple[str, list[str]]:
    """Return what `status` and `workers` say."""
    service.wait_ready()
    socket.create_connection(("127.0.0.1", service.port)).close()
    status = service.ask("status", "stats.sock")
    return status["io"], [row["io"] for row in service.rows("workers")]


@needs_io_uring
@pytest.mark.parametrize("io", ["auto", "io_uring"])
def test_io_uring_runs_where_it_works(service: Service, io: str) -> None:
    service.write(io=io, workers=2)
    service.start(real=True)
    assert shown(service) == ("io_uring", ["io_uring", "io_uring"])
    assert len(service.said("event=serving .*io=io_uring")) == 2
    assert not service.said("io_uring_missing")
    service.stop()


def test_epoll_runs_where_it_is_asked_for(service: Service) -> None:
    service.write(io="epoll")
    service.start(real=True)
    assert shown(service) == ("epoll", ["epoll"])
    assert not service.said("io_uring")
    service.stop()


FORBIDDEN = [
    pytest.param(forbid_io_uring, "io_uring is not allowed", id="all"),
    pytest.param(partial(forbid_io_uring, [SETUP]), "io_uring is not allowed", id="setup"),
    pytest.param(partial(forbid_io_uring, [ENTER]), "io_uring is not allowed", id="enter"),
    pytest.param(
        *(partial(forbid_io_uring, [REGISTER]), "not permitted"),
        id="register",
        marks=needs_io_uring,
    ),
    pytest.param(
        *(partial(forbid_io_uring, error=ENOSYS), "the kernel has no io_uring"), id="unknown"
    ),
]


@pytest.mark.parametrize(("forbid", "told"), FORBIDDEN)
def test_where_io_uring_is_forbidden_auto_takes_epoll_with_one_line(
    service: Service, forbid: Callable[[], None], told: str
) -> None:
    """Also if only a part is: what the start does not try would end worker after worker."""
    service.write(io="auto", workers=2)
    service.start(real=True, preexec_fn=forbid)
    assert shown(service) == ("epoll", ["epoll", "epoll"])
    lines = service.said("event=io_uring_missing .*")
    assert len(lines) == 1
    assert told in lines[0]
    assert "io=epoll" in lines[0]
    service.stop()


def test_where_io_uring_is_forbidden_and_asked_for_the_start_is_refused(service: Service) -> None:
    service.write(io="io_uring")
    service.start(real=True, preexec_fn=forbid_io_uring)
    assert service.end() == 78
    assert "supervisor.io: io_uring cannot be had: io_uring is not allowed" in service.log()
    assert "set io to auto" in service.log()


ONE_RING_BYTES = 320 * 1024
"""A worker's ring takes some 210 KiB: room for one, not for two."""


@needs_io_uring
def test_room_for_one_ring_at_a_time_is_enough_for_a_worker(service: Service) -> None:
    """The rings of probes count until the kernel has cleared up behind them."""
    service.write(io="auto")
    service.start(real=True, preexec_fn=partial(limit_locked_memory, ONE_RING_BYTES))
    assert shown(service) == ("io_uring", ["io_uring"])
    for count in (2, 3):
        os.kill(service.pid("worker", 0), signal.SIGKILL)
        service.wait_said("event=serving .*io=io_uring", count=count)
    assert not service.said("engine_not_started|io_uring_missing")
    service.stop()


@needs_io_uring
def test_where_almost_no_memory_may_be_locked_the_service_starts(service: Service) -> None:
    """Where the kernel counts a ring's memory, what is missing is told with its remedy."""
    service.write(io="auto", workers=2)
    service.start(real=True, preexec_fn=partial(limit_locked_memory, 8192))
    status, workers = shown(service)
    assert workers == [status] * 2
    lines = service.said("event=io_uring_missing .*")
    assert len(lines) == (status == "epoll")
    assert all("RLIMIT_MEMLOCK" in line and "LimitMEMLOCK" in line for line in lines)
    service.stop()


@needs_io_uring
def test_a_ring_belongs_to_one_worker_and_no_other_process_ever_has_it(service: Service) -> None:
    """A fork after its making would share it: it is made in the worker, which forks no more."""
    service.write(io="io_uring", workers=2)
    service.start(real=True)
    shown(service)
    workers = [service.pid("worker", number) for number in (0, 1)]
    os.kill(workers[0], signal.SIGKILL)
    workers[0] = service.wait_new_pid("worker", workers[0], 0)
    service.wait_said("event=serving", count=3)

    def rings(pid: int) -> int:
        return descriptors(pid).count("anon_inode:[io_uring]")

    wait_until(lambda: [rings(pid) for pid in workers] == [1, 1], "a ring for each worker")
    others = [service.process.pid, service.pid("controller"), service.pid("admin")]
    assert [rings(pid) for pid in others] == [0, 0, 0]
    assert not parents() & set(workers), "a worker has forked"
    service.stop()
