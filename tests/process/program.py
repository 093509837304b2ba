"""A program around the arbiter whose worker behaves as the first argument says.

Run by `test_arbiter.py`; not a test itself. Next on the path: `test_arbiter.py`.
"""

from __future__ import annotations

import signal
import sys

import gevent.monkey

gevent.monkey.patch_all()

from pyproxy.log import set_up_logging  # noqa: E402 - after the patches, as in the product
from pyproxy.supervisor.arbiter import Arbiter  # noqa: E402


def wait() -> signal.Signals:
    """Wait for one of the signals that the supervisor passes on; they are blocked here."""
    return signal.Signals(signal.sigwait({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}))


def polite(generation: int) -> int:
    """End with 0 on SIGTERM or SIGINT."""
    print(f"told {wait().name} in {generation}", flush=True)
    return 0


def slow(generation: int) -> int:
    """Drain for ever on the first signal, end on SIGQUIT."""
    while (told := wait()) != signal.SIGQUIT:
        print(f"told {told.name} in {generation}", flush=True)
    return 0


def deaf(_generation: int) -> int:
    """Ignore everything but SIGKILL."""
    while True:
        wait()


def crash(_generation: int) -> int:
    """End at once with an error."""
    return 1


def refuse(_generation: int) -> int:
    """Say that the configuration cannot work."""
    return 78


def raise_error(_generation: int) -> int:
    """Fail with an exception."""
    raise ValueError("a bug")


def main() -> None:
    """Run the arbiter with the worker that is asked for."""
    set_up_logging("logfmt", "info")
    worker = globals()[sys.argv[1]]
    drain_ms = int(sys.argv[2])
    arbiter = Arbiter(
        worker, shutdown_timeout_ms=drain_ms, on_stop=lambda: print("closed", flush=True)
    )
    sys.exit(arbiter.run())


if __name__ == "__main__":
    main()
