"""The supervisor stays small, and a worker's Python has little for itself.

Runs the product. Figures are for the Python side: there are no clients. Next on the path:
`test_run.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fix_postgres import wait_until
from tests.process.harness import Service, services
from tests.processes import private_bytes

WORKER_BYTES_MAX = 12 * 1024 * 1024
HELPER_BYTES_MAX = 16 * 1024 * 1024


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Service]:
    """A service with two workers."""
    with services(tmp_path) as make:
        made = make(real=True, workers=2)
        made.wait_ready()
        yield made
        made.stop()


def test_a_worker_has_at_most_12_mb_that_it_does_not_share(running: Service) -> None:
    own = {number: private_bytes(running.pid("worker", number)) for number in (0, 1)}
    assert max(own.values()) <= WORKER_BYTES_MAX, own


def test_controller_and_admin_are_small_too(running: Service) -> None:
    wait_until(running.answers, "the admin process answers")
    own = {kind: private_bytes(running.pid(kind)) for kind in ("controller", "admin")}
    assert max(own.values()) <= HELPER_BYTES_MAX, own


def test_the_supervisor_never_loads_what_reads_the_configuration(running: Service) -> None:
    assert running.ask("reload")["ok"]
    maps = Path(f"/proc/{running.process.pid}/maps").read_text()
    assert "_core.abi3.so" in maps
    assert "pydantic_core" not in maps
