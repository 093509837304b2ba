"""The commands of the control socket: pause, resume, reconnect, kill and what they wait for.

Each waits first until every running worker has acknowledged the epoch that carries it. A worker
that dies meanwhile is out of the sum: its clients are gone, and its successor starts with the
newest epoch. If the supervisor dies, what was published stays; the caller sees its connection end.
Not here: reload (``reload.py``), the socket (``control.py``). Next on the path: ``reload.py``.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from pyproxy import _core, exitcodes, mail
from pyproxy.errors import OperatorError
from pyproxy.limits import (
    ACKNOWLEDGE_S,
    NAME_BYTES_MAX,
    ORDER_S,
    PAUSE_S,
    PAUSE_S_MAX,
)
from pyproxy.log import log_event
from pyproxy.supervisor.boxes import Boxes
from pyproxy.supervisor.children import Children
from pyproxy.supervisor.control import Answer, Pending
from pyproxy.supervisor.epochs import ALL, Epochs

CLIENT_IDS_A_LIFE = 1_000_000_000
"""A client's id is its worker's incarnation times this, plus a counter."""
_log = logging.getLogger("pyproxy.supervisor")


class Orders:
    """What the commands work on."""

    def __init__(self, epochs: Epochs, children: Children, page: _core.Page, boxes: Boxes) -> None:
        """Keep the parts."""
        self.epochs = epochs
        self.children = children
        self.page = page
        self.boxes = boxes

    def pause(self, request: dict[str, Any]) -> Pending:
        """Take no new work for a database (default: all), and wait until nothing of it runs."""
        database = _database(request)
        wait_s = _wait_s(request)
        epoch = self.epochs.pause(database)
        self.epochs.tell(self.children.workers())
        log_event(_log, logging.WARNING, "paused", database=database, epoch=epoch)
        return _Quiet(self, epoch, database, time.monotonic() + wait_s)

    def resume(self, request: dict[str, Any]) -> Pending:
        """Undo ``pause``, or what ``kill`` left paused."""
        database = _database(request)
        epoch = self.epochs.resume(database)
        self.epochs.tell(self.children.workers())
        log_event(_log, logging.WARNING, "resumed", database=database, epoch=epoch)
        return Acknowledged(self, epoch, {"ok": True, "database": database})

    def reconnect(self, request: dict[str, Any]) -> Pending:
        """Replace the servers of a database (default: all) as they get idle."""
        database = _database(request)
        epoch = self.epochs.reconnect(database)
        self.epochs.tell(self.children.workers())
        log_event(_log, logging.INFO, "reconnecting", database=database, epoch=epoch)
        return Acknowledged(self, epoch, {"ok": True, "database": database})

    def kill(self, request: dict[str, Any]) -> Pending:
        """Pause a database and end its clients and servers."""
        if not request.get("database"):
            raise OperatorError("kill needs a database (* = all)", exitcodes.USAGE)
        database = _database(request)
        epoch = self.epochs.pause(database)
        self.epochs.tell(self.children.workers())
        log_event(_log, logging.WARNING, "killing", database=database, epoch=epoch)
        return _Killing(self, epoch, database)

    def kill_client(self, request: dict[str, Any]) -> Answer | Pending:
        """End one client by its id."""
        client = request.get("client")
        if not isinstance(client, int) or client < CLIENT_IDS_A_LIFE:
            raise OperatorError("kill-client needs an id as clients shows it", exitcodes.USAGE)
        for child in self.children.workers():
            if child.incarnation == client // CLIENT_IDS_A_LIFE and child.role.worker is not None:
                log_event(_log, logging.WARNING, "killing_client", client=client)
                sent = _Sent(self, [child.role.worker], mail.Verb.KILL_CLIENT, str(client))
                return _ClientKilled(sent, client)
        return {"ok": False, "error": f"no client {client}: its worker has ended", "exit": 1}

    def busy(self) -> int:
        """Return how many servers still work for what is paused."""
        return sum(self.page.worker(number)["paused_busy"] for number in self.children.numbers())

    def lagging(self, epoch: int) -> list[int]:
        """Return the workers that do not run with an epoch yet; tell those who were not told."""
        workers = self.children.workers()
        self.epochs.tell(workers)
        return self.epochs.lagging(workers, epoch)


class Acknowledged:
    """Waits until all workers run with an epoch, then gives an answer that was made before."""

    def __init__(self, orders: Orders, epoch: int, answer: Answer) -> None:
        """Wait for ``epoch``, at most ``ACKNOWLEDGE_S``."""
        self._orders = orders
        self._epoch = epoch
        self._answer = answer
        self._until = time.monotonic() + ACKNOWLEDGE_S

    def poll(self, now: float) -> Answer | None:
        """Give the answer; workers that are late are named in it."""
        lagging = self._orders.lagging(self._epoch)
        if lagging and now < self._until:
            return None
        return with_lagging({**self._answer, "epoch": self._epoch}, lagging)


class _Quiet:
    """Waits until nothing of what is paused runs."""

    def __init__(self, orders: Orders, epoch: int, database: str, until: float) -> None:
        self._orders = orders
        self._epoch = epoch
        self._database = database
        self._until = until

    def poll(self, now: float) -> Answer | None:
        orders = self._orders
        lagging = orders.lagging(self._epoch)
        busy = orders.busy()
        if (lagging or busy) and now < self._until:
            return None
        answer: Answer = {"ok": True, "database": self._database, "epoch": self._epoch}
        if busy:
            hint = "they stay as they are and nothing new begins; `pyproxy resume` undoes the pause"
            answer |= {"ok": False, "error": f"{busy} still busy; {hint}", "exit": 1, "busy": busy}
        return with_lagging(answer, lagging)


class _Killing:
    """Waits until the pause is known everywhere, then orders the end of the clients."""

    def __init__(self, orders: Orders, epoch: int, database: str) -> None:
        self._orders = orders
        self._acknowledged = Acknowledged(orders, epoch, {"ok": True, "database": database})
        self._database = database
        self._answer: Answer = {}
        self._sent: _Sent | None = None

    def poll(self, now: float) -> Answer | None:
        if self._sent is None:
            answer = self._acknowledged.poll(now)
            if answer is None:
                return None
            self._answer = answer
            numbers = self._orders.children.numbers()
            verb = mail.Verb.KILL_DATABASE
            self._sent = _Sent(self._orders, numbers, verb, self._database)
        if not self._sent.is_done(now):
            return None
        answer = {**self._answer, "ended": self._sent.ended}
        return with_lagging(answer, self._sent.silent)


class _ClientKilled:
    """Waits for one worker's word that it ended a client."""

    def __init__(self, sent: _Sent, client: int) -> None:
        self._sent = sent
        self._client = client

    def poll(self, now: float) -> Answer | None:
        if not self._sent.is_done(now):
            return None
        if self._sent.ended:
            return {"ok": True, "ended": self._sent.ended}
        reason = "its worker does not answer" if self._sent.silent else "it has ended already"
        return {"ok": False, "error": f"no client {self._client}: {reason}", "exit": 1}


class _Sent:
    """One order on its way: a pipe a worker, whose end is its answer."""

    def __init__(self, orders: Orders, workers: list[int], verb: mail.Verb, argument: str) -> None:
        self.ended = 0
        self.silent: list[int] = []
        self._open: dict[int, tuple[int, bytes]] = {}
        self._until = time.monotonic() + ORDER_S
        for worker in workers:
            reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            if orders.boxes.send(worker, mail.order(verb, argument), [writer]):
                self._open[worker] = (reader, b"")
            else:
                os.close(reader)
                self.silent.append(worker)
            os.close(writer)

    def is_done(self, now: float) -> bool:
        """Read what has come; True when all have answered, or the time is over."""
        for worker, (reader, before) in list(self._open.items()):
            try:
                data = os.read(reader, 64)
            except BlockingIOError:
                continue
            if data:
                self._open[worker] = (reader, before + data)
                continue
            self._close(worker, before)
        if now >= self._until:
            for worker in list(self._open):
                self._close(worker, b"")
        return not self._open

    def _close(self, worker: int, text: bytes) -> None:
        reader, _ = self._open.pop(worker)
        os.close(reader)
        if text.isdigit():
            self.ended += int(text)
        else:
            self.silent.append(worker)


def with_lagging(answer: Answer, lagging: list[int]) -> Answer:
    """Name in an answer the workers that did not follow; they will when they run again."""
    if not lagging:
        return answer
    names = ", ".join(map(str, lagging))
    late = f"worker {names} has not followed yet"
    told = f"{answer['error']}; {late}" if "error" in answer else late
    return {**answer, "ok": False, "error": told, "exit": exitcodes.FINDINGS, "lagging": lagging}


def _database(request: dict[str, Any]) -> str:
    database = request.get("database") or ALL
    if not isinstance(database, str) or not 0 < _bytes(database) <= NAME_BYTES_MAX:
        rule = f"a database's name is a text of at most {NAME_BYTES_MAX} bytes"
        raise OperatorError(rule, exitcodes.USAGE)
    return database


def _bytes(text: str) -> int:
    """Return the length in UTF-8; 0 if the text has none (half a surrogate pair in it)."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0


def _wait_s(request: dict[str, Any]) -> float:
    wait_s = request.get("timeout_s", PAUSE_S)
    if isinstance(wait_s, bool) or not isinstance(wait_s, int | float):
        raise OperatorError("timeout_s is a number of seconds", exitcodes.USAGE)
    return float(min(max(wait_s, 0), PAUSE_S_MAX))
