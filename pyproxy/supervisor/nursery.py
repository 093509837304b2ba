"""What each kind of child is born with, and what of the supervisor's it must not keep.

A child keeps neither the pid file's lock nor the control socket nor the life pipe's write end: the
first two would outlive the supervisor in it, the third would hide the supervisor's death from all.
Not here: when a child is born (``arbiter.py``). Next on the path: ``../worker/main.py``,
``../controller/main.py``, ``../admin/main.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyproxy import _core
from pyproxy.admin.main import AdminKit
from pyproxy.controller.main import ControllerKit
from pyproxy.supervisor.boxes import Boxes
from pyproxy.supervisor.children import ADMIN, CONTROLLER, Child, Children, Role
from pyproxy.supervisor.control import CONTROL_NAME
from pyproxy.supervisor.epochs import Epochs
from pyproxy.supervisor.listeners import Listeners
from pyproxy.worker.main import WorkerKit


@dataclass(frozen=True)
class Mains:
    """What runs in each kind of child; returns the exit code."""

    worker: Callable[[WorkerKit], int]
    controller: Callable[[ControllerKit], int]
    admin: Callable[[AdminKit], int]


@dataclass
class Estate:
    """What outlives every child: made once, before the first fork.

    ``channel`` is the supervisor's end of the controller's socket pair, ``controller_end`` the
    other; ``stats`` the listening statistics socket.
    """

    page: _core.Page
    boxes: Boxes
    listeners: Listeners
    epochs: Epochs
    channel: Any
    controller_end: Any
    stats: Any
    life_reader: int
    life_writer: int
    runtime_dir: Path


class Nursery:
    """Starts children with what is theirs."""

    def __init__(
        self,
        estate: Estate,
        children: Children,
        mains: Mains,
        close_own: Callable[[], None],
    ) -> None:
        """Keep the parts; ``close_own`` closes in a child what is only the supervisor's."""
        self._estate = estate
        self._children = children
        self._mains = mains
        self._close_own = close_own

    def start(self, role: Role, now: float) -> Child:
        """Fork the child of a role."""
        if role == CONTROLLER:
            return self._children.start(role, self._controller, self._close_for_controller, now)
        if role == ADMIN:
            return self._children.start(role, self._admin, self._close_for_admin, now)
        worker = role.worker or 0

        def main(incarnation: int) -> int:
            return self._mains.worker(self._worker_kit(role, worker, incarnation))

        child = self._children.start(role, main, lambda: self._close_for_worker(worker), now)
        self._estate.epochs.born_with(worker, child.incarnation)
        return child

    def close_for_loader(self) -> None:
        """Close what the child that reads the configuration must not keep: everything of ours."""
        self._close_own()
        os.close(self._estate.life_writer)
        self._estate.listeners.close_in_child()

    def _worker_kit(self, role: Role, worker: int, incarnation: int) -> WorkerKit:
        estate, service = self._estate, self._estate.epochs.compiled.service
        return WorkerKit(
            name=estate.epochs.compiled.name,
            io=service.io,
            page=estate.page,
            worker=worker,
            incarnation=incarnation,
            epoch=estate.epochs.number,
            settings_fd=estate.epochs.settings_fd,
            listeners=estate.epochs.offered(),
            inbox=estate.boxes.inbox(worker),
            outboxes=[each.fileno() for each in estate.boxes.outboxes],
            life_fd=estate.life_reader,
            last_words_fd=self._children.words(role).descriptor,
            orphan_s=service.orphan_timeout_ms / 1000,
            shutdown_s=service.shutdown_timeout_ms / 1000,
        )

    def _close_for_worker(self, worker: int) -> None:
        self._close_own()
        os.close(self._estate.life_writer)
        self._estate.boxes.close_inboxes(keep=worker)
        self._estate.channel.close()
        self._estate.controller_end.close()
        self._estate.stats.close()

    def _controller(self, _incarnation: int) -> int:
        estate = self._estate
        targets = estate.epochs.compiled.targets
        return self._mains.controller(
            ControllerKit(targets, estate.controller_end, estate.life_reader, self._linger_s())
        )

    def _close_for_controller(self) -> None:
        self._close_for_helper()
        self._estate.boxes.close_outboxes()
        self._estate.stats.close()

    def _admin(self, _incarnation: int) -> int:
        estate = self._estate
        return self._mains.admin(
            AdminKit(
                page=estate.page,
                outboxes=estate.boxes.outboxes,
                listener=estate.stats,
                control=estate.runtime_dir / CONTROL_NAME,
                life_fd=estate.life_reader,
                linger_s=self._linger_s(),
            )
        )

    def _close_for_admin(self) -> None:
        self._close_for_helper()
        self._estate.controller_end.close()

    def _close_for_helper(self) -> None:
        self._close_own()
        os.close(self._estate.life_writer)
        os.close(self._estate.epochs.settings_fd)
        self._estate.boxes.close_inboxes()
        self._estate.listeners.close_in_child()
        self._estate.channel.close()

    def _linger_s(self) -> float:
        service = self._estate.epochs.compiled.service
        return (service.orphan_timeout_ms + service.shutdown_timeout_ms) / 1000
