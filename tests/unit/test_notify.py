"""systemd hears what it asked for, and the service runs the same without it.

Not here: when each is said (`../process/test_run.py`). Next on the path: `../process/program.py`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.supervisor.notify import Notify


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that listens as systemd's does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(5)
        yield made


def test_it_hears_each_state_in_one_message(systemd: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": systemd.getsockname()}
    notify = Notify(environment)
    assert environment == {}
    notify.reloaded("a reload before the service was ready says nothing")
    notify.ready("serving with 2 workers")
    assert systemd.recv(1000) == b"READY=1\nSTATUS=serving with 2 workers"
    notify.reloading()
    assert systemd.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    notify.reloaded("serving")
    assert systemd.recv(1000) == b"READY=1\nSTATUS=serving"
    notify.stopping()
    assert systemd.recv(1000).startswith(b"STOPPING=1\n")
    notify.close_in_child()


def test_the_watchdog_is_fed_twice_as_often_as_asked(systemd: socket.socket) -> None:
    own = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "20000000"}
    fed = Notify({**own, "WATCHDOG_PID": str(os.getpid())})
    assert fed.watchdog_s == 10.0
    other = Notify({**own, "WATCHDOG_PID": "1"})
    assert other.watchdog_s is None
    fed.close_in_child()
    other.close_in_child()


def test_without_systemd_or_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    silent = Notify({"WATCHDOG_USEC": "20000000"})
    silent.ready("serving")
    assert silent.watchdog_s is None
    gone = Notify({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    gone.ready("serving")
    gone.close_in_child()
