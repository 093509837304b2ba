"""Which way of waiting for sockets the service takes, and how an operator learns of it.

Not here: what the two drivers do (`rust/engine`). Next on the path: `../forbid.py`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy import _core
from tests.forbid import forbid_io_uring
from tests.process.harness import Service

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


def test_where_io_uring_is_forbidden_auto_takes_epoll_with_one_line(service: Service) -> None:
    service.write(io="auto", workers=2)
    service.start(real=True, preexec_fn=forbid_io_uring)
    assert shown(service) == ("epoll", ["epoll", "epoll"])
    told = service.said("event=io_uring_missing .*")
    assert len(told) == 1
    assert "not allowed" in told[0]
    assert "io=epoll" in told[0]
    service.stop()


def test_where_io_uring_is_forbidden_and_asked_for_the_start_is_refused(service: Service) -> None:
    service.write(io="io_uring")
    service.start(real=True, preexec_fn=forbid_io_uring)
    assert service.end() == 78
    assert "supervisor.io: io_uring cannot be had: io_uring is not allowed" in service.log()
    assert "set io to auto" in service.log()
