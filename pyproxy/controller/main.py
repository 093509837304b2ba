"""The controller: resolves the targets' names, again and again, and tells the supervisor.

It holds nothing that others need: while it is dead, everybody goes on with the last addresses,
which the supervisor keeps; its successor resolves anew. If the supervisor dies, it goes on for as
long as workers may (they no longer hear of it) and ends. Not here: what is done with addresses
(``../supervisor/epochs.py``). Next on the path: ``channel.py``, then ``targets.py``.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gevent
from gevent.event import Event

from pyproxy import exitcodes
from pyproxy.config.compiled import TargetAddress
from pyproxy.controller.channel import read_targets, write_found
from pyproxy.controller.targets import Resolver, probe_all
from pyproxy.lifepipe import LifeWatch
from pyproxy.limits import RESOLVE_RETRY_S, RESOLVE_S, TOPOLOGY_BYTES_MAX
from pyproxy.log import log_event

_READ = 1  # libev's EV_READ
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_log = logging.getLogger("pyproxy.controller")


@dataclass(frozen=True)
class ControllerKit:
    """What the supervisor gives; ``linger_s`` is the time to live after the supervisor's death."""

    targets: Sequence[TargetAddress]
    channel: Any
    life_fd: int
    linger_s: float


def run_controller(kit: ControllerKit) -> int:
    """Resolve until told to stop; return the exit code. Runs in a fresh child, signals blocked."""
    return _Controller(kit).run()


class _Controller:
    """One controller's life."""

    def __init__(self, kit: ControllerKit) -> None:
        self.kit = kit
        self.targets = list(kit.targets)
        self.ended = Event()
        self.changed = Event()

    def run(self) -> int:
        for number in _SIGNALS:
            gevent.signal_handler(number, self.ended.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        LifeWatch(self.kit.life_fd, self.on_orphaned)
        self.watcher: Any = gevent.get_hub().loop.io(self.kit.channel.fileno(), _READ)
        self.watcher.start(self.on_message)
        worker = gevent.spawn(self.serve)
        worker.link_exception(lambda _: self.ended.set())
        self.ended.wait()
        return exitcodes.OK if worker.exception is None else exitcodes.WORKER_FAILED

    def serve(self) -> None:
        """Resolve now, at intervals, and when the targets change."""
        resolver = Resolver()
        probed: list[TargetAddress] = []
        while True:
            self.changed.clear()
            targets = list(self.targets)
            names = [target for target in targets if target.literal() is None]
            found = resolver.resolve(names)
            if found:
                self.tell(found)
            if targets != probed:
                probed = targets
                gevent.spawn(probe_all, targets)
            self.changed.wait(RESOLVE_RETRY_S if len(found) < len(names) else RESOLVE_S)

    def tell(self, found: dict[TargetAddress, Any]) -> None:
        """Send what was found; a supervisor that does not read now is told the next time."""
        try:
            self.kit.channel.send(write_found(found))
        except OSError as error:
            log_event(_log, logging.WARNING, "topology_not_told", reason=error.strerror)

    def on_message(self) -> None:
        """Take the newest targets from the supervisor."""
        try:
            while message := self.kit.channel.recv(TOPOLOGY_BYTES_MAX):
                self.targets = read_targets(message)
                self.changed.set()
        except BlockingIOError:
            return
        except OSError:
            pass
        self.watcher.stop()  # the supervisor is gone: this end would be readable for ever

    def on_orphaned(self) -> None:
        """Go on for as long as workers do, then end."""
        gevent.sleep(self.kit.linger_s)
        self.ended.set()
