"""Reloads: a child checks, then everything is taken over at once, or nothing.

::

    IDLE --request--> LOADING --child refuses or dies--> IDLE (nothing changed, callers told)
      ^                  | compiled, nothing of it needs a restart, new addresses bound
      +-- all workers ---+-> SPREADING: epoch published; at most ACKNOWLEDGE_S
          run with it        then addresses that are gone are closed

Requests that come meanwhile wait for one further reload, since the file may have changed again. If
a worker dies while SPREADING, its successor starts with the new epoch. If the supervisor dies, each
worker goes on with the epoch that it has. Not here: the checks (``loading.py``). Next on the path:
``loading.py``.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from pyproxy import exitcodes
from pyproxy.config.compiled import Compiled
from pyproxy.errors import OperatorError
from pyproxy.limits import LOAD_S
from pyproxy.log import log_event
from pyproxy.supervisor.control import Answer
from pyproxy.supervisor.loading import ConfigRefusedError, Loading
from pyproxy.supervisor.loop import Loop
from pyproxy.supervisor.notify import Notify
from pyproxy.supervisor.orders import Acknowledged, Orders

_log = logging.getLogger("pyproxy.supervisor")


class Request:
    """One caller's reload; SIGHUP makes one that nobody asks."""

    def __init__(self) -> None:
        """Start without an answer."""
        self.answer: Answer | None = None

    def poll(self, _now: float) -> Answer | None:
        """Return the answer once there is one."""
        return self.answer


class Reloader:
    """Carries reloads out, one after the other."""

    def __init__(
        self,
        orders: Orders,
        loop: Loop,
        notify: Notify,
        start: Callable[[], Loading],
        on_change: Callable[[], None],
    ) -> None:
        """Prepare.

        ``start`` starts a child that reads the configuration; ``on_change`` is called when another
        one counts (workers to start or stop, names to resolve).
        """
        self._orders = orders
        self._listeners = orders.epochs.listeners
        self._loop = loop
        self._notify = notify
        self._start = start
        self._on_change = on_change
        self._waiting: list[Request] = []
        self._current: list[Request] = []
        self._loading: Loading | None = None
        self._load_until = 0.0
        self._spreading: Acknowledged | None = None

    def request(self) -> Request:
        """Ask for a reload."""
        request = Request()
        self._waiting.append(request)
        return request

    @property
    def is_active(self) -> bool:
        """Whether one is under way or asked for."""
        return bool(self._waiting or self._loading or self._spreading)

    def due(self, now: float) -> None:
        """Go on with what is under way; begin what waits."""
        if self._spreading is not None:
            answer = self._spreading.poll(now)
            if answer is not None:
                self._spreading = None
                self._finish(answer)
        elif self._loading is not None:
            if now >= self._load_until:
                self._loading.kill()
                self._load_until = float("inf")
        elif self._waiting:
            self._current, self._waiting = self._waiting, []
            self._notify.reloading()
            try:
                self._loading = self._start()
            except OSError as error:
                self._refuse([_no_room(error)])
                return
            self._load_until = now + LOAD_S
            self._loop.watch(self._loading.pidfd, self._on_loaded)

    def cancel(self, reason: str) -> None:
        """End what is under way, because the service ends; a published epoch stays."""
        if self._loading is not None:
            self._loop.forget(self._loading.pidfd)
            self._loading.kill()
            with contextlib.suppress(ConfigRefusedError):
                self._loading.take()
            self._loading = None
        self._spreading = None
        for request in (*self._current, *self._waiting):
            request.answer = {"ok": False, "error": reason, "exit": exitcodes.UNAVAILABLE}
        self._current, self._waiting = [], []

    def _on_loaded(self) -> None:
        loading, self._loading = self._loading, None
        if loading is None:
            return
        self._loop.forget(loading.pidfd)
        try:
            self._take_over(loading.take())
        except ConfigRefusedError as error:
            self._refuse(error.lines)
        except OperatorError as error:
            self._refuse([str(error)])
        except OSError as error:
            self._refuse([_no_room(error)])

    def _take_over(self, compiled: Compiled) -> None:
        lines = self._orders.epochs.compiled.restart_needed(compiled)
        if lines:
            raise ConfigRefusedError(lines)
        bound = self._listeners.bind(compiled.listeners)
        try:
            epoch = self._orders.epochs.adopt(compiled)
        except OSError:
            self._listeners.close_some(bound)
            raise
        for remark in compiled.remarks:
            log_event(_log, logging.WARNING, "setting_without_effect", remark=remark)
        self._on_change()
        answer = {"ok": True, "workers": self._orders.epochs.workers}
        self._spreading = Acknowledged(self._orders, epoch, answer)
        self.due(time.monotonic())

    def _finish(self, answer: Answer) -> None:
        for address in self._listeners.retire(self._orders.epochs.compiled.listeners):
            log_event(_log, logging.INFO, "listener_closed", address=address)
        level = logging.INFO if answer["ok"] else logging.WARNING
        fields = {"epoch": answer["epoch"], "reason": answer.get("error")}
        log_event(_log, level, "reloaded", **fields)
        self._tell(answer)

    def _refuse(self, lines: Sequence[str]) -> None:
        for line in lines:
            log_event(_log, logging.ERROR, "reload_refused", problem=line)
        count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''} in the configuration"
        error = f"{count}; nothing was changed"
        answer: Answer = {"ok": False, "error": error, "exit": exitcodes.CONFIG}
        self._tell({**answer, "problems": list(lines)})

    def _tell(self, answer: Answer) -> None:
        for request in self._current:
            request.answer = answer
        self._current = []
        epochs = self._orders.epochs
        self._notify.reloaded(f"serving with {epochs.workers} workers, epoch {epochs.number}")


def _no_room(error: OSError) -> str:
    return f"the system has no room for it: {error.strerror or error}; try again"
