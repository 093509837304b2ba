"""The `pyproxy` command on the stand-in engine, with workers that behave as the first word says.

Run by the tests of this folder; not a test itself. `good` workers are the product's own. Next on
the path: `test_arbiter.py`.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from typing import Any

import gevent.monkey

gevent.monkey.patch_all()

from pyproxy import _core  # noqa: E402 - after the patches, as in the product
from pyproxy.supervisor import run as service  # noqa: E402
from pyproxy.supervisor.nursery import Mains  # noqa: E402
from pyproxy.worker.main import WorkerKit, run_worker  # noqa: E402
from tests.process import stand_in  # noqa: E402


def wait(kit: WorkerKit) -> signal.Signals:
    """Look alive, then wait for one of the signals that the supervisor passes on."""
    for name, value in (("incarnation", kit.incarnation), ("epoch", kit.epoch), ("alive", 1)):
        page: Any = kit.page
        page.put(kit.worker, name, value)
    told = signal.sigwait({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
    print(f"told {signal.Signals(told).name} in {kit.incarnation}", flush=True)
    return signal.Signals(told)


def good(kit: WorkerKit) -> int:
    """Serve as the product does."""
    return run_worker(kit)


def polite(kit: WorkerKit) -> int:
    """End with 0 on the first signal."""
    wait(kit)
    return 0


def slow(kit: WorkerKit) -> int:
    """Drain for ever on the first signal, end on SIGQUIT."""
    while wait(kit) != signal.SIGQUIT:
        pass
    return 0


def deaf(kit: WorkerKit) -> int:
    """Ignore everything but SIGKILL."""
    while True:
        wait(kit)


def crash(_kit: WorkerKit) -> int:
    """End at once with an error."""
    return 1


def crash_second(kit: WorkerKit) -> int:
    """End with an error in worker 1; worker 0 serves."""
    return 1 if kit.worker == 1 else run_worker(kit)


def refuse(_kit: WorkerKit) -> int:
    """Say that the configuration cannot work."""
    return 78


def raise_error(_kit: WorkerKit) -> int:
    """Fail with an exception."""
    raise ValueError("a bug")


def abort(_kit: WorkerKit) -> int:
    """Fail as a panic does."""
    os.abort()


def main() -> None:
    """Run the command with the worker that is asked for."""
    behaviour = sys.argv.pop(1)
    replaced: Any = _core
    replaced.Page, replaced.Engine = stand_in.Page, stand_in.Engine
    replaced.set_panic_file = lambda _fd: None
    mains = Mains(globals()[behaviour], service.MAINS.controller, service.MAINS.admin)
    replaced = service
    replaced.run_service = partial(service.run_service, mains=mains)

    from pyproxy.commands import cli

    cli(prog_name="pyproxy")


if __name__ == "__main__":
    main()
