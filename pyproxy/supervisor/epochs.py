"""The settings that engines run with: one JSON text an epoch, in a sealed memfd, told to all.

What a publication holds: the compiled configuration, the targets' addresses, what is paused, which
servers are to be replaced. A worker that starts takes the newest one; a running one is told by mail
and stores the epoch's number in its page entry, which is the acknowledgement. If a worker dies in
between, its successor starts with the newest; if the supervisor dies, each worker goes on with the
one it has, which is whole. Passwords are in these texts and in no other place. Not here: why
something is published (``reload.py``, ``operator.py``). Next on the path: ``arbiter.py``.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pyproxy import _core, mail
from pyproxy.config.compiled import Address, Compiled, TargetAddress
from pyproxy.errors import OperatorError
from pyproxy.limits import PAUSED_MAX
from pyproxy.log import log_event
from pyproxy.supervisor.boxes import Boxes
from pyproxy.supervisor.children import Child
from pyproxy.supervisor.listeners import Listeners

ALL = "*"
"""Stands for every database."""
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_log = logging.getLogger("pyproxy.supervisor")


@dataclass(frozen=True)
class Publication:
    """Everything that one epoch says.

    ``addresses`` is what the controller found for names; ``paused`` and ``reconnect`` (database to
    serial) have database names or ``"*"``; ``workers`` (1–64) is how many share the budget.
    """

    compiled: Compiled
    workers: int
    addresses: Mapping[TargetAddress, Sequence[Address]] = field(default_factory=dict)
    paused: frozenset[str] = frozenset()
    reconnect: Mapping[str, int] = field(default_factory=dict)

    def text(self) -> str:
        """Write it as JSON; the fields are those of `rust/core/src/config.rs`."""
        targets: list[Address] = []
        for target in self.compiled.targets:
            for each in self.addresses_of(target):
                if each not in targets:
                    targets.append(each)
        own = {
            "targets": targets,
            "paused": sorted(self.paused),
            "reconnect": sorted(self.reconnect.items()),
            "workers": self.workers,
        }
        return json.dumps({**self.compiled.core, **own})

    def addresses_of(self, target: TargetAddress) -> Sequence[Address]:
        """Return what is known of one target."""
        literal = target.literal()
        return self.addresses.get(target, ()) if literal is None else [literal]


def seal(text: str) -> int:
    """Put a text into a memfd that nobody can change any more; return its descriptor."""
    descriptor = os.memfd_create("pyproxy settings", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    raw = memoryview(text.encode())
    while raw:
        raw = raw[os.write(descriptor, raw) :]
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


class Epochs:
    """The newest settings, and which worker has been told of them."""

    def __init__(
        self, compiled: Compiled, listeners: Listeners, page: _core.Page, boxes: Boxes
    ) -> None:
        """Publish epoch 1; the listeners of ``compiled`` are bound."""
        self.number = 0
        self.listeners = listeners
        self._page = page
        self._boxes = boxes
        self._settings = -1
        self._told: dict[int, tuple[int, int]] = {}  # worker: (its incarnation, the epoch)
        self._newest = Publication(compiled, compiled.service.workers)
        self._publish(self._newest)

    @property
    def compiled(self) -> Compiled:
        """The configuration that counts."""
        return self._newest.compiled

    @property
    def workers(self) -> int:
        """How many workers there shall be."""
        return self._newest.workers

    @property
    def paused(self) -> frozenset[str]:
        """The databases that are paused, or ``"*"``."""
        return self._newest.paused

    @property
    def settings_fd(self) -> int:
        """The newest settings."""
        return self._settings

    def offered(self) -> list[tuple[int, int, bool]]:
        """Return the listeners of the newest epoch: (listener id, descriptor, is Unix)."""
        return self.listeners.offered(self.compiled.listeners)

    def addresses(self) -> dict[str, list[str]]:
        """Return what is known of each target, for people."""
        return {
            str(target): [
                text for each in self._newest.addresses_of(target) for text in each.values()
            ]
            for target in self.compiled.targets
        }

    def adopt(self, compiled: Compiled) -> int:
        """Publish another configuration, whose listeners are bound; return the epoch.

        A number of workers that was changed by signal stays unless the configuration's changes.
        """
        same = compiled.service.workers == self.compiled.service.workers
        workers = self.workers if same else compiled.service.workers
        return self._publish(replace(self._newest, compiled=compiled, workers=workers))

    def set_workers(self, workers: int) -> int:
        """Publish another number of workers; return the epoch."""
        return self._publish(replace(self._newest, workers=workers))

    def set_addresses(self, found: Mapping[TargetAddress, list[Address]]) -> int | None:
        """Publish what the controller resolved; return the epoch, or None if nothing is new.

        The order in which a name server lists the same addresses says nothing. A name that is
        missing here keeps the addresses that it had.
        """
        known = {
            target: addresses
            for target, addresses in self._newest.addresses.items()
            if target in self.compiled.targets
        }
        new = {
            target: addresses
            for target, addresses in found.items()
            if target in self.compiled.targets and not _same(known.get(target, []), addresses)
        }
        return self._publish(replace(self._newest, addresses={**known, **new})) if new else None

    def pause(self, database: str) -> int:
        """Publish that a database (or ``"*"``) takes no new work; return the epoch.

        Raises ``OperatorError`` if too many are paused.
        """
        if len(self.paused) >= PAUSED_MAX and database not in self.paused:
            raise OperatorError(f"{PAUSED_MAX} databases are paused already; pause all", 1)
        return self._publish(replace(self._newest, paused=self.paused | {database}))

    def resume(self, database: str) -> int:
        """Publish that a database, or with ``"*"`` everything, goes on; return the epoch.

        Raises ``OperatorError`` if that cannot be said so.
        """
        if database == ALL:
            return self._publish(replace(self._newest, paused=frozenset()))
        if database in self.paused:
            return self._publish(replace(self._newest, paused=self.paused - {database}))
        if ALL in self.paused:
            raise OperatorError("everything is paused; resume everything", 1)
        raise OperatorError(f"database {database!r} is not paused", 1)

    def reconnect(self, database: str) -> int:
        """Publish that a database's servers (``"*"``: all) are replaced as they get idle."""
        before = dict(self._newest.reconnect)
        if database == ALL or len(before) >= PAUSED_MAX:
            before, database = {}, ALL
        reconnect = {**before, database: self.number + 1}
        return self._publish(replace(self._newest, reconnect=reconnect))

    def _publish(self, publication: Publication) -> int:
        """Make the next epoch; ``tell`` brings it to a worker.

        Raises ``OSError`` if the system has no room for it; everything is as before then.
        """
        settings = seal(publication.text())
        if self._settings >= 0:
            os.close(self._settings)
        self._settings, self._newest = settings, publication
        self._page.set_limit(self.compiled.connections_max, self.compiled.connections_percent)
        self.number += 1
        log_event(_log, logging.DEBUG, "epoch", number=self.number)
        return self.number

    def born_with(self, worker: int, incarnation: int) -> None:
        """Note that a worker was forked with the newest epoch."""
        self._told[worker] = (incarnation, self.number)

    def tell(self, workers: Iterable[Child]) -> None:
        """Tell each worker that does not know the newest epoch; a full inbox gets it later."""
        offered = self.offered()
        text = mail.epoch(self.number, [(number, unix) for number, _, unix in offered])
        descriptors = [self._settings, *(descriptor for _, descriptor, _ in offered)]
        for child in workers:
            worker, now = child.role.worker, (child.incarnation, self.number)
            if worker is None or self._told.get(worker) == now:
                continue
            if self._boxes.send(worker, text, descriptors):
                self._told[worker] = now

    def tell_again(self, workers: Sequence[Child]) -> None:
        """Tell those as well that were told and do not follow.

        A worker without a free descriptor loses such a mail; a second one does no harm.
        """
        for worker in self.lagging(workers, self.number):
            self._told.pop(worker, None)
        self.tell(workers)

    def lagging(self, workers: Iterable[Child], epoch: int) -> list[int]:
        """Return the workers (numbers) whose engines do not run with ``epoch`` or a later one."""
        late = []
        for child in workers:
            worker = child.role.worker
            if worker is None:
                continue
            view = self._page.worker(worker)
            if view["incarnation"] != child.incarnation or view["epoch"] < epoch:
                late.append(worker)
        return late


def _same(one: Sequence[Address], other: Sequence[Address]) -> bool:
    return len(one) == len(other) and all(each in one for each in other)
