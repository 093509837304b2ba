"""The arbiter: starts the children, watches them, starts them again, and ends them when told to.

One thread, one ``poll`` over pidfds, signals and sockets; no gevent hub, so that forking stays
safe.

::

    STARTING --fork--> RUNNING --TERM/INT/QUIT--> STOPPING --all children gone--> exit 0
        ^                 | child gone
        +---- back-off <--+------ worker: exit 78, five crashes in 30 s --> STOPPING, exit 78 / 69

When a worker dies: what it did not read is closed, then its page entry is buried, then the others
are poked (they cancel what it left running and take its permits), then it starts again with the
newest epoch and the next incarnation. When the controller or the admin process dies: it starts
again, with the same sockets; nobody waits for it. When the arbiter itself dies: the life pipe ends,
and each child knows what to do. Not here: commands (``orders.py``), reloads (``reload.py``), what a
child is born with (``nursery.py``). Next on the path: ``nursery.py``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyproxy import _core, exitcodes
from pyproxy.controller.channel import read_found, write_targets
from pyproxy.errors import OperatorError
from pyproxy.limits import (
    BACKOFF_MAX_S,
    CRASH_WINDOW_S,
    CRASHES_MAX,
    INTERRUPT_DRAIN_S,
    KILL_AFTER_S,
    PENDING_LOOK_S,
    TOPOLOGY_BYTES_MAX,
    WORKERS_MAX,
)
from pyproxy.log import log_event
from pyproxy.supervisor.children import ADMIN, CONTROLLER, Child, Children, Ended, Role
from pyproxy.supervisor.control import Answer, Control, Pending
from pyproxy.supervisor.heartbeats import Heartbeats, Sight
from pyproxy.supervisor.loading import Loading
from pyproxy.supervisor.loop import Loop
from pyproxy.supervisor.notify import Notify
from pyproxy.supervisor.nursery import Estate, Mains, Nursery
from pyproxy.supervisor.orders import Orders
from pyproxy.supervisor.pidfile import PidFile
from pyproxy.supervisor.reload import Reloader
from pyproxy.supervisor.restarts import Restarts
from pyproxy.supervisor.signals import STOPPING, SignalQueue

_log = logging.getLogger("pyproxy.supervisor")
_NEVER = float("inf")


@dataclass(frozen=True)
class Own:
    """What only the supervisor holds: its lock, its listening control socket, its systemd."""

    pid_file: PidFile
    control: Any
    notify: Notify


class Arbiter:
    """Keeps the children of one service running until told to stop."""

    def __init__(self, estate: Estate, mains: Mains, own: Own, flags: tuple[str, ...] = ()) -> None:
        """Prepare; nothing starts before ``run``.

        ``flags`` are the ``section.key=value`` of the command line, which a reload applies again.
        """
        notify = own.notify
        self._estate = estate
        self._own = own
        self._epochs = estate.epochs
        self._notify = notify
        self._flags = flags
        self._loop = Loop()
        self._children = Children()
        self._orders = Orders(estate.epochs, self._children, estate.page, estate.boxes)
        self._nursery = Nursery(estate, self._children, mains, self._close_own)
        self._control = Control(own.control, self._loop, self._on_request)
        self._reloader = Reloader(
            self._orders,
            self._loop,
            notify,
            self._load,
            self._on_settings,
        )
        self._began = time.monotonic()
        self._heartbeats = Heartbeats(self._began)
        self._bark_at = _NEVER if notify.watchdog_s is None else self._began
        self._start_at: dict[Role, float] = {}
        self._buried: set[int] = set()
        self._exit_code = exitcodes.OK
        self._stopping = False
        self._ready = False

    def run(self) -> int:
        """Serve until a signal or a hopeless worker ends it; return the exit code."""
        self._signals = SignalQueue()
        self._loop.watch(self._signals.descriptor, self._on_signals)
        self._loop.watch(self._estate.channel.fileno(), self._on_found)
        faults = Restarts()
        try:
            while not self._stopping or self._someone_runs():
                try:
                    self._loop.turn(self._due() - time.monotonic())
                except Exception:
                    # One fault (out of descriptors, say) must not take the service with it; a
                    # fault in every turn must not fill the disk with its traceback.
                    faults.note(time.monotonic(), 0.0)
                    if faults.is_hopeless():
                        raise
                    _log.exception("supervisor_fault")
            return self._exit_code
        finally:
            self._control.close()
            self._signals.restore()

    def _due(self) -> float:
        """Do what is due now; return when to look again (monotonic seconds)."""
        now = time.monotonic()
        again = min(self._start_due(now), self._end_due(now), self._look_due(now))
        self._reloader.due(now)
        again = min(again, self._control.due(now))
        if not self._ready and not self._stopping:
            self._ready = self._say_ready()
        if not self._ready or self._reloader.is_active:
            again = min(again, now + PENDING_LOOK_S)
        return again

    # Starting.

    def _wanted(self) -> list[Role]:
        workers = [Role.of_worker(number) for number in range(self._epochs.workers)]
        return [*workers, CONTROLLER, ADMIN]

    def _start_due(self, now: float) -> float:
        """Start who is missing and may start now; return when the next one may."""
        again = _NEVER
        if self._stopping:
            return again
        for role in self._wanted():
            if self._children.get(role) is not None:
                continue
            at = self._start_at.get(role, now)
            if now >= at:
                self._start_at.pop(role, None)
                self._start(role, now)
            else:
                again = min(again, at)
        return again

    def _start(self, role: Role, now: float) -> None:
        try:
            child = self._nursery.start(role, now)
        except OSError as error:
            self._start_at[role] = now + BACKOFF_MAX_S
            fields = {"worker": role.worker, "reason": error.strerror, "again_in_s": BACKOFF_MAX_S}
            log_event(_log, logging.ERROR, f"{_kind(role)}_not_started", **fields)
            return
        self._loop.watch(child.forked.pidfd, partial(self._on_end, child))
        fields = {"worker": role.worker, "process": child.pid}
        if role.worker is not None:
            fields["incarnation"] = child.incarnation
            self._hand_inbox(role.worker)
        log_event(_log, logging.INFO, f"{_kind(role)}_started", **fields)

    def _say_ready(self) -> bool:
        """Tell systemd once every worker serves with the newest epoch."""
        workers = self._children.workers()
        if len(workers) < self._epochs.workers or self._orders.lagging(self._epochs.number):
            return False
        numbers = self._children.numbers()
        if not all(self._estate.page.worker(number)["alive"] for number in numbers):
            return False
        log_event(_log, logging.INFO, "ready", workers=len(workers), epoch=self._epochs.number)
        self._notify.ready(f"serving with {len(workers)} workers")
        return True

    # Watching.

    def _look_due(self, now: float) -> float:
        """Look at the heartbeats, tell who missed an epoch, feed the watchdog."""
        if now >= self._heartbeats.due:
            workers = self._children.workers()
            for number in self._heartbeats.look(now, map(self._sight, workers)):
                child = self._children.get(Role.of_worker(number))
                if child is not None:
                    log_event(_log, logging.ERROR, "worker_stuck", worker=number, process=child.pid)
                    child.send(signal.SIGKILL)
            self._epochs.tell_again(workers)
        if now >= self._bark_at and self._notify.watchdog_s is not None:
            self._notify.send("WATCHDOG=1")
            self._bark_at = now + self._notify.watchdog_s
        return min(self._heartbeats.due, self._bark_at)

    def _sight(self, child: Child) -> Sight:
        worker = child.role.worker or 0
        view = self._estate.page.worker(worker)
        own = view["incarnation"] == child.incarnation
        beat = view["heartbeat"] if own else 0
        return Sight(worker, child.incarnation, child.started, beat)

    def _on_end(self, child: Child) -> None:
        self._loop.forget(child.forked.pidfd)
        ended = self._children.reap(child)
        if ended is None:
            self._loop.watch(child.forked.pidfd, partial(self._on_end, child))
            return
        role = child.role
        if role.worker is not None:
            self._bury(role.worker)
        asked = self._stopping or child.leaving
        fine = asked and ended.code == exitcodes.OK
        fields = {"worker": role.worker, "process": child.pid, "code": ended.code}
        level = logging.INFO if fine else logging.ERROR
        log_event(_log, level, f"{_kind(role)}_ended", **fields, signal=ended.signal)
        if not fine:
            self._quote(role)
        if not asked:
            self._on_crash(ended)

    def _bury(self, worker: int) -> None:
        """Close what a dead worker did not read, before its permits can go to others."""
        mails, closed = self._estate.boxes.drain(worker)
        orphaned = self._estate.page.bury(worker)
        # What is still on its way to it, from a sender that hung in between, say, is closed as it
        # comes: a connection in this box would outlive its permit.
        self._buried.add(worker)
        inbox = self._estate.boxes.inbox(worker)
        self._loop.watch(inbox, partial(self._drop_mail, worker))
        self._estate.boxes.poke(self._children.numbers())
        fields = {"worker": worker, "mails": mails, "descriptors": closed}
        log_event(_log, logging.INFO, "worker_buried", **fields, permits=orphaned)

    def _drop_mail(self, worker: int) -> None:
        self._estate.boxes.drain(worker)

    def _hand_inbox(self, worker: int) -> None:
        """Leave a worker's inbox to the worker, which has started again."""
        if worker in self._buried:
            self._buried.remove(worker)
            self._loop.forget(self._estate.boxes.inbox(worker))

    def _quote(self, role: Role) -> None:
        event = f"{_kind(role)}_last_line"
        for line in self._children.words(role).lines():
            log_event(_log, logging.ERROR, event, worker=role.worker, line=line)

    def _on_crash(self, ended: Ended) -> None:
        """Start the child again, at once or later; give up if a worker makes that hopeless."""
        now, role = time.monotonic(), ended.child.role
        restarts = self._children.restarts(role)
        pause = restarts.note(now, now - ended.child.started)
        self._start_at[role] = now + pause
        if role.worker is None:
            return
        if ended.code == exitcodes.CONFIG:
            self._give_up(exitcodes.CONFIG, f"worker {role.worker} exited with 78")
        elif restarts.is_hopeless():
            reason = f"{CRASHES_MAX} crashes of worker {role.worker} in {CRASH_WINDOW_S:.0f} s"
            self._give_up(exitcodes.UNAVAILABLE, f"{reason}; the lines above say why")

    def _give_up(self, code: int, reason: str) -> None:
        log_event(_log, logging.ERROR, "service_stopped", reason=reason)
        if not self._stopping:
            self._exit_code = code
            self._stop(signal.SIGTERM, INTERRUPT_DRAIN_S)

    # Stopping.

    def _someone_runs(self) -> bool:
        return any(True for _ in self._children)

    def _stop(self, number: signal.Signals, drain_s: float) -> None:
        """Take no more clients, and let the workers end within ``drain_s`` seconds."""
        if not self._stopping:
            self._stopping = True
            self._notify.stopping()
            self._reloader.cancel("the service is stopping")
            self._estate.listeners.close()
        for child in self._children.workers():
            self._let_go(child, number, drain_s)
        self._end_helpers()

    def _let_go(self, child: Child, number: signal.Signals, drain_s: float) -> None:
        child.leaving = True
        child.send(number)
        child.quit_at = min(child.quit_at, time.monotonic() + drain_s)

    def _end_due(self, now: float) -> float:
        """End those whose time is over; return when the next one's is."""
        again = _NEVER
        if self._stopping:
            self._end_helpers()
        for child in self._children:
            if now >= child.quit_at:
                child.quit_at, child.kill_at = _NEVER, now + KILL_AFTER_S
                child.send(signal.SIGQUIT)
            if now >= child.kill_at:
                child.kill_at = _NEVER
                event = f"{_kind(child.role)}_killed"
                fields = {"worker": child.role.worker, "process": child.pid}
                log_event(_log, logging.ERROR, event, **fields)
                child.send(signal.SIGKILL)
            again = min(again, child.quit_at, child.kill_at)
        return again

    def _end_helpers(self) -> None:
        """End controller and admin once the last worker is gone: they may be asked until then."""
        if self._children.workers():
            return
        for child in self._children:
            if not child.leaving:
                self._let_go(child, signal.SIGTERM, KILL_AFTER_S)

    # Signals.

    def _on_signals(self) -> None:
        for number in self._signals.take():
            self._on_signal(number)

    def _on_signal(self, number: signal.Signals) -> None:
        """Do what `docs/` says of each signal; a second TERM or INT, or QUIT, stops at once."""
        if number not in STOPPING:
            log_event(_log, logging.INFO, "signal", signal=number.name)
            self._on_command(number)
            return
        at_once = self._stopping or number == signal.SIGQUIT
        log_event(_log, logging.INFO, "signal", signal=number.name, at_once=at_once)
        drain_s = self._epochs.compiled.service.shutdown_timeout_ms / 1000
        if number == signal.SIGINT:
            drain_s = min(drain_s, INTERRUPT_DRAIN_S)
        self._stop(signal.SIGQUIT if at_once else number, 0.0 if at_once else drain_s)

    def _on_command(self, number: signal.Signals) -> None:
        if self._stopping:
            return
        try:
            match number:
                case signal.SIGHUP:
                    self._reloader.request()
                case signal.SIGUSR1:
                    self._orders.pause({"timeout_s": 0})
                case signal.SIGUSR2:
                    self._orders.resume({})
                case signal.SIGTTIN:
                    self._set_workers(min(self._epochs.workers + 1, WORKERS_MAX))
                case signal.SIGTTOU:
                    self._set_workers(max(self._epochs.workers - 1, 1))
                case _:
                    pass
        except OperatorError as error:
            log_event(_log, logging.WARNING, "signal_refused", reason=error)

    def _set_workers(self, workers: int) -> None:
        if workers == self._epochs.workers:
            log_event(_log, logging.WARNING, "workers_unchanged", workers=workers)
            return
        epoch = self._epochs.set_workers(workers)
        log_event(_log, logging.INFO, "workers_changed", workers=workers, epoch=epoch)
        self._on_workers()

    def _on_workers(self) -> None:
        """Let the workers go whose numbers are too high; missing ones start by themselves."""
        drain_s = self._epochs.compiled.service.shutdown_timeout_ms / 1000
        for child in self._children.workers():
            if (child.role.worker or 0) >= self._epochs.workers and not child.leaving:
                self._let_go(child, signal.SIGTERM, drain_s)
        self._epochs.tell(self._children.workers())

    # Settings, topology, commands.

    def _load(self) -> Loading:
        service = self._epochs.compiled.service
        return Loading(service.file, self._flags, self._nursery.close_for_loader)

    def _on_settings(self) -> None:
        self._on_workers()
        with contextlib.suppress(BlockingIOError):  # a stuck one learns it when it starts again
            self._estate.channel.send(write_targets(self._epochs.compiled.targets))

    def _on_found(self) -> None:
        """Publish what the controller resolved."""
        try:
            found = read_found(self._estate.channel.recv(TOPOLOGY_BYTES_MAX))
        except BlockingIOError:
            return
        except (ValueError, KeyError) as error:
            log_event(_log, logging.ERROR, "topology_malformed", reason=error)
            return
        epoch = self._epochs.set_addresses(found)
        if epoch is not None:
            known = self._epochs.addresses().items()
            shown = " ".join(f"{target}={','.join(found)}" for target, found in known)
            log_event(_log, logging.INFO, "topology", epoch=epoch, targets=shown)
            self._epochs.tell(self._children.workers())

    def _on_request(self, request: dict[str, Any]) -> Answer | Pending:
        """Carry a request of the control socket out."""
        verb = str(request.get("verb"))
        if verb == "status":
            return self._status()
        if self._stopping and verb != "stop":
            raise OperatorError("the service is stopping", exitcodes.UNAVAILABLE)
        if verb in ("drain", "stop"):
            log_event(_log, logging.INFO, "stop_asked", verb=verb)
            self._on_signal(signal.SIGTERM if verb == "drain" else signal.SIGQUIT)
            return {"ok": True, "draining": len(self._children.workers())}
        commands = {
            "reload": lambda _request: self._reloader.request(),
            "pause": self._orders.pause,
            "resume": self._orders.resume,
            "reconnect": self._orders.reconnect,
            "kill": self._orders.kill,
            "kill-client": self._orders.kill_client,
        }
        if verb not in commands:
            raise OperatorError(f"unknown verb {verb!r}", exitcodes.USAGE)
        return commands[verb](request)

    def _status(self) -> Answer:
        now = time.monotonic()
        paused = sorted(self._epochs.paused)
        state = "draining" if self._stopping else "serving" if self._ready else "starting"
        return {
            "ok": True,
            "state": "paused" if paused and state == "serving" else state,
            "version": _core.__version__,
            "pid": os.getpid(),
            "uptime_s": round(now - self._began, 1),
            "epoch": self._epochs.number,
            "paused": paused,
            "listeners": [str(each) for each in self._epochs.compiled.listeners],
            "targets": self._epochs.addresses(),
            "file": self._epochs.compiled.service.file,
            "workers": [self._child_row(child, now) for child in self._children.workers()],
            "controller": self._pid(CONTROLLER),
            "admin": self._pid(ADMIN),
        }

    def _child_row(self, child: Child, now: float) -> dict[str, Any]:
        return {
            "worker": child.role.worker,
            "pid": child.pid,
            "incarnation": child.incarnation,
            "uptime_s": round(now - child.started, 1),
            "restarts": self._children.restarts(child.role).count,
            "leaving": child.leaving,
        }

    def _pid(self, role: Role) -> int | None:
        child = self._children.get(role)
        return None if child is None else child.pid

    def _close_own(self) -> None:
        """Close in a child what is only the supervisor's."""
        self._signals.restore()
        self._own.pid_file.close_in_child()
        self._control.close_in_child()
        self._notify.close_in_child()


def _kind(role: Role) -> str:
    return "worker" if role.worker is not None else role.name
