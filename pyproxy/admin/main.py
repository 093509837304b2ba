"""The admin process: answers the read verbs on the statistics socket, one JSON line each way.

It holds nothing that others need: while it is dead the verbs that only read say so, and the
supervisor starts it again with the same socket. If the supervisor dies, it goes on for as long as
workers may, and ends. Callers are root or the service's own user. Not here: commands, which are the
supervisor's (``../supervisor/control.py``). Next on the path: ``rows.py``, then ``state.py``.
"""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
from gevent import socket as gevent_socket
from gevent.event import Event
from gevent.pool import Pool

from pyproxy import _core, exitcodes
from pyproxy.admin.rows import SHOWN, collect
from pyproxy.admin.state import status, workers
from pyproxy.lifepipe import LifeWatch
from pyproxy.limits import ACCEPT_AGAIN_S, CALLERS_MAX, REQUEST_BYTES_MAX, REQUEST_S
from pyproxy.log import log_event
from pyproxy.plainsocket import accept, may_command

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_log = logging.getLogger("pyproxy.admin")


@dataclass(frozen=True)
class AdminKit:
    """What the supervisor gives; ``linger_s`` is the time to live after the supervisor's death."""

    page: _core.Page
    outboxes: Sequence[Any]
    listener: Any
    control: Path
    life_fd: int
    linger_s: float


def run_admin(kit: AdminKit) -> int:
    """Answer until told to stop; return the exit code. Runs in a fresh child, signals blocked."""
    return _Admin(kit).run()


class _Admin:
    """One admin process's life."""

    def __init__(self, kit: AdminKit) -> None:
        self.kit = kit
        self.ended = Event()

    def run(self) -> int:
        for number in _SIGNALS:
            gevent.signal_handler(number, self.ended.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        LifeWatch(self.kit.life_fd, self.on_orphaned)
        server = gevent.spawn(self.serve)
        server.link_exception(lambda _: self.ended.set())
        self.ended.wait()
        return exitcodes.OK if server.exception is None else exitcodes.WORKER_FAILED

    def serve(self) -> None:
        """Accept callers; while there are too many, the next ones wait in the queue."""
        callers = Pool(CALLERS_MAX)
        while True:
            callers.wait_available()
            gevent_socket.wait_read(self.kit.listener.fileno())
            try:
                accepted = accept(self.kit.listener)
            except BlockingIOError:
                continue
            except OSError as error:  # descriptors are short: the caller waits, and we do not spin
                log_event(_log, logging.ERROR, "stats_not_accepted", reason=error.strerror)
                gevent.sleep(ACCEPT_AGAIN_S)
                continue
            connection = gevent_socket.socket(fileno=accepted.detach())
            callers.spawn(self.answer, connection)

    def answer(self, connection: Any) -> None:
        """Answer one caller's requests until it goes away."""
        try:
            with connection:
                if may_command(connection):
                    self.talk(connection)
        except OSError:
            return  # the caller is gone, or did not ask in time
        except Exception:
            _log.exception("admin_failed")

    def talk(self, connection: Any) -> None:
        taken = b""
        connection.settimeout(REQUEST_S)
        while True:
            with gevent.Timeout(REQUEST_S, TimeoutError("the request does not end")):
                while b"\n" not in taken:
                    data = connection.recv(REQUEST_BYTES_MAX)
                    taken += data
                    if not data or len(taken) > REQUEST_BYTES_MAX:
                        return
            line, _, taken = taken.partition(b"\n")
            connection.sendall(json.dumps(self.handle(line)).encode() + b"\n")

    def handle(self, line: bytes) -> dict[str, Any]:
        """Return the answer to one request."""
        try:
            verb = json.loads(line)["verb"]
        except (ValueError, KeyError, TypeError, RecursionError):
            error = 'the request is not {"verb": …}'
            return {"ok": False, "error": error, "exit": exitcodes.USAGE}
        if verb == "status":
            told, whole = status(self.kit.page, self.kit.control)
            return _partial(told, [] if whole else ["the supervisor"])
        if verb == "workers":
            rows, whole = workers(self.kit.page, self.kit.control)
            return _partial({"rows": rows}, [] if whole else ["the supervisor"])
        if verb in SHOWN:
            found = collect(self.kit.page, self.kit.outboxes, verb)
            silent = [f"worker {number}" for number in found.silent]
            return _partial({"rows": found.rows, "silent": found.silent}, silent)
        return {"ok": False, "error": f"unknown verb {verb!r}", "exit": exitcodes.USAGE}

    def on_orphaned(self) -> None:
        """Go on for as long as workers do, then end."""
        gevent.sleep(self.kit.linger_s)
        self.ended.set()


def _partial(answer: dict[str, Any], missing: list[str]) -> dict[str, Any]:
    """Say in an answer who did not answer; the rest still counts."""
    if not missing:
        return {"ok": True, **answer}
    return {"ok": True, **answer, "missing": missing, "exit": exitcodes.FINDINGS}
