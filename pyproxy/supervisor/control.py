"""The control socket: one JSON line in, one JSON line out, served by the supervisor's own loop.

Nothing here waits: a request whose answer takes time is a `Pending` that is asked again in each
turn. Callers are root or the service's own user; their number, their lines and their time are
bounded; while there are too many, the next ones wait in the queue. A caller that goes away takes
only its answer with it. Not here: what the verbs do
(``orders.py``). Next on the path: ``orders.py``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pyproxy import exitcodes
from pyproxy.errors import OperatorError
from pyproxy.limits import ACCEPT_AGAIN_S, CALLERS_MAX, PENDING_LOOK_S, REQUEST_BYTES_MAX, REQUEST_S
from pyproxy.log import log_event
from pyproxy.plainsocket import accept, may_command, new_socket, peer_uid
from pyproxy.supervisor.loop import Loop

CONTROL_NAME = "control.sock"
STATS_NAME = "stats.sock"
Answer = dict[str, Any]
_log = logging.getLogger("pyproxy.supervisor")


class Pending(Protocol):
    """An answer that takes time."""

    def poll(self, now: float) -> Answer | None:
        """Return the answer once it is known; ``now`` is monotonic, in seconds. Never waits."""
        ...


Handler = Callable[[dict[str, Any]], "Answer | Pending"]


def refusal(reason: str, exit_code: int = exitcodes.FINDINGS) -> Answer:
    """Answer that a request was not carried out; ``exit_code`` is what the verb ends with."""
    return {"ok": False, "error": reason, "exit": exit_code}


def bind_private(path: Path) -> Any:
    """Bind a listening Unix socket of mode 0600; whoever holds the pid file owns the place.

    Raises ``OperatorError`` (78) if the directory does not allow it.
    """
    bound = new_socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        bound.bind(str(path))
        bound.listen(CALLERS_MAX)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        text = f"cannot make {path}: {error.strerror or error}; set supervisor.runtime_dir to a"
        text += " short path that this user may write"
        raise OperatorError(text, exitcodes.CONFIG) from error
    finally:
        os.umask(before)
    return bound


@dataclass(eq=False)
class _Caller:
    connection: Any
    until: float
    taken: bytes = b""
    pending: Pending | None = None
    answer: bytes = b""
    writing: bool = field(default=False)


class Control:
    """The callers of one control socket."""

    def __init__(self, listener: Any, loop: Loop, handler: Handler) -> None:
        """Begin to serve; ``handler`` gets each request as a dictionary."""
        self._listener = listener
        self._loop = loop
        self._handler = handler
        self._callers: list[_Caller] = []
        self._now = 0.0
        self._listen_at: float | None = None
        self._listening = False
        self._refused_last = False
        self._listen()

    def due(self, now: float) -> float:
        """Ask what is pending, end what took too long; return when to be called again."""
        self._now = now
        again = float("inf")
        if self._listen_at is not None:
            again = self._listen_at
            if now >= self._listen_at:
                self._listen_at = None
                self._listen()
        for caller in list(self._callers):
            if caller.pending is not None:
                answer = caller.pending.poll(now)
                if answer is not None:
                    caller.pending = None
                    self._reply(caller, answer)
                again = min(again, now + PENDING_LOOK_S)
            elif now >= caller.until:
                self._end(caller)
            else:
                again = min(again, caller.until)
        return again

    def close(self) -> None:
        """End all callers and stop to serve."""
        for caller in list(self._callers):
            self._end(caller)
        self._listen(on=False)
        self._listener.close()

    def close_in_child(self) -> None:
        """Close a forked child's copies."""
        self._listener.close()
        for caller in self._callers:
            caller.connection.close()

    def _listen(self, *, on: bool = True) -> None:
        """Take callers, or leave them in the queue."""
        if on and not self._listening:
            self._loop.watch(self._listener.fileno(), self._on_caller)
        elif self._listening and not on:
            self._loop.forget(self._listener.fileno())
        self._listening = on

    def _on_caller(self) -> None:
        try:
            connection = accept(self._listener)
        except BlockingIOError:
            return
        except OSError as error:  # descriptors are short: the caller waits, and we do not spin
            log_event(_log, logging.ERROR, "control_not_accepted", reason=error.strerror)
            self._listen(on=False)
            self._listen_at = self._now + ACCEPT_AGAIN_S
            return
        if not may_command(connection):
            if not self._refused_last:  # one line for a thousand of them in a row
                log_event(_log, logging.WARNING, "control_refused", uid=peer_uid(connection))
            self._refused_last = True
            connection.close()
            return
        self._refused_last = False
        caller = _Caller(connection, self._now + REQUEST_S)
        self._callers.append(caller)
        self._loop.watch(connection.fileno(), lambda: self._on_bytes(caller))
        if len(self._callers) >= CALLERS_MAX:
            self._listen(on=False)

    def _on_bytes(self, caller: _Caller) -> None:
        try:
            data = caller.connection.recv(REQUEST_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or caller.pending is not None or caller.answer:
            self._end(caller)  # gone, or it talks where it should listen
            return
        caller.taken += data
        line, newline, _rest = caller.taken.partition(b"\n")
        if newline:
            self._serve(caller, line)
        elif len(caller.taken) > REQUEST_BYTES_MAX:
            self._reply(caller, refusal("the request is too long", exitcodes.USAGE))

    def _serve(self, caller: _Caller, line: bytes) -> None:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            self._reply(caller, refusal("the request is not a JSON object", exitcodes.USAGE))
            return
        try:
            outcome = self._handler(request)
        except OperatorError as error:
            outcome = refusal(str(error), error.exit_code)
        except Exception:
            _log.exception("control_failed")
            outcome = refusal("a fault in the service; its log tells more")
        if isinstance(outcome, dict):
            self._reply(caller, outcome)
        else:
            caller.pending = outcome

    def _reply(self, caller: _Caller, answer: Answer) -> None:
        caller.answer = json.dumps(answer).encode() + b"\n"
        caller.until = self._now + REQUEST_S
        self._flush(caller)

    def _flush(self, caller: _Caller) -> None:
        try:
            sent = caller.connection.send(caller.answer, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end(caller)
            return
        caller.answer = caller.answer[sent:]
        if not caller.answer:
            self._end(caller)
        elif not caller.writing:
            caller.writing = True
            self._loop.watch(caller.connection.fileno(), lambda: self._flush(caller), write=True)

    def _end(self, caller: _Caller) -> None:
        self._callers.remove(caller)
        with contextlib.suppress(KeyError):
            self._loop.forget(caller.connection.fileno())
        caller.connection.close()
        if self._listen_at is None:
            self._listen()
