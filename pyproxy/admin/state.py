"""The state of the service for ``status`` and ``workers``: the page, and what the supervisor knows.

The page is read here; process ids and what is paused come from the supervisor's control socket, and
are missing while it is dead or busy (the answer then says so). Not here: rows of single clients
(``rows.py``). Next on the path: ``rows.py``.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import gevent
from gevent import socket as gevent_socket

from pyproxy import _core
from pyproxy.admin.rows import alive
from pyproxy.limits import ANSWER_BYTES_MAX, ORDER_S

SUMS = ("clients", "waiting", "idle", "servers", "paused_busy")


def status(page: _core.Page, control: Path) -> tuple[dict[str, Any], bool]:
    """Return the whole service's state, and whether the supervisor answered.

    Where it did not, its keys are missing.
    """
    told = ask_supervisor(control)
    numbers = alive(page)
    entries = [page.worker(number) for number in numbers]
    sums = {name: sum(entry[name] for entry in entries) for name in SUMS}
    found = {
        "state": "no supervisor" if told is None else told["state"],
        **{key: told[key] for key in _KEPT if told is not None and key in told},
        "io": ", ".join(sorted({io for number in numbers if (io := page.io(number))})),
        "workers": len(entries),
        **sums,
        "budget": page.budget(),
    }
    return found, told is not None


_KEPT = ("version", "pid", "uptime_s", "epoch", "paused", "listeners", "targets", "file")


def workers(page: _core.Page, control: Path) -> tuple[list[dict[str, Any]], bool]:
    """Return a row a worker, and whether the supervisor answered (process ids are its part)."""
    told = ask_supervisor(control)
    children = {} if told is None else {row["worker"]: row for row in told["workers"]}
    rows = []
    for number in sorted({*alive(page), *children}):
        known = children.get(number, {})
        entry = page.worker(number)
        serves = "serving" if entry["alive"] else "starting"
        state = "draining" if known.get("leaving") else serves
        rows.append(
            {
                "worker": number,
                "pid": known.get("pid"),
                "state": state,
                "uptime_s": known.get("uptime_s"),
                "restarts": known.get("restarts"),
                "io": page.io(number),
                **{name: value for name, value in entry.items() if name != "alive"},
            }
        )
    return rows, told is not None


def ask_supervisor(control: Path) -> dict[str, Any] | None:
    """Ask for the supervisor's part; None if it is gone or does not answer in ``ORDER_S``."""
    try:
        with (
            gevent.Timeout(ORDER_S, TimeoutError("no answer")),
            gevent_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
        ):
            connection.connect(str(control))
            connection.sendall(b'{"verb": "status"}\n')
            raw = b""
            while not raw.endswith(b"\n") and len(raw) < ANSWER_BYTES_MAX:
                part = connection.recv(65536)
                if not part:
                    return None
                raw += part
        answer: dict[str, Any] = json.loads(raw)
    except (OSError, ValueError):
        return None
    return answer if answer.get("ok") else None
