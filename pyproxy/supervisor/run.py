"""``pyproxy run``: from a configuration file to a running service.

Puts the parts in order: configuration (in a child), pid file, listeners, descriptors, privileges,
page and mailboxes, arbiter. Next on the path: ``loading.py``, ``pidfile.py``, ``listeners.py``,
``privileges.py``, ``arbiter.py``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
from collections.abc import Sequence
from pathlib import Path

from pyproxy import _core
from pyproxy.admin.main import run_admin
from pyproxy.config.compiled import Compiled
from pyproxy.controller.main import run_controller
from pyproxy.limits import BUDGET_SLOTS, WORKERS_MAX
from pyproxy.log import log_event, set_up_logging
from pyproxy.logsink import LogSink
from pyproxy.plainsocket import socket_pair
from pyproxy.supervisor.arbiter import Arbiter, Own
from pyproxy.supervisor.boxes import Boxes
from pyproxy.supervisor.control import CONTROL_NAME, STATS_NAME, bind_private
from pyproxy.supervisor.epochs import Epochs
from pyproxy.supervisor.forking import import_for_children
from pyproxy.supervisor.listeners import Listeners
from pyproxy.supervisor.loading import Loading
from pyproxy.supervisor.notify import Notify
from pyproxy.supervisor.nursery import Estate, Mains
from pyproxy.supervisor.pidfile import PidFile
from pyproxy.supervisor.privileges import describe, drop_privileges, find_user
from pyproxy.worker.io import choose_io
from pyproxy.worker.main import run_worker

MAINS = Mains(run_worker, run_controller, run_admin)
_DESCRIPTORS_OWN = 2 * WORKERS_MAX + 64
"""Descriptors that a process of the service takes for itself: mailboxes, pipes, sockets, files."""
_log = logging.getLogger("pyproxy.supervisor")
_STDERR = 2


def run_service(file: str, flags: Sequence[str], mains: Mains = MAINS) -> int:
    """Run the service in the foreground; return the exit code.

    ``file`` is the configuration, ``flags`` are ``section.key=value``. Raises
    ``ConfigRefusedError`` and ``OperatorError`` (the operator's fault) before the first client is
    taken, and never after.
    """
    import_for_children()
    compiled = Loading(os.path.abspath(file), flags).take()  # noqa: PTH100
    service = compiled.service
    set_up_logging(service.log_format, service.log_level, LogSink(_STDERR))
    for remark in compiled.remarks:
        log_event(_log, logging.WARNING, "setting_without_effect", remark=remark)
    user = find_user(service.user) if service.user else None
    with contextlib.ExitStack() as at_end:
        pid_file = PidFile(service.runtime_dir)
        at_end.callback(pid_file.remove)
        listeners = Listeners()
        at_end.callback(listeners.close)
        listeners.bind(compiled.listeners)
        runtime_dir = Path(service.runtime_dir)
        sockets = [runtime_dir / CONTROL_NAME, runtime_dir / STATS_NAME]
        control, stats = map(bind_private, sockets)
        at_end.callback(_remove, sockets)
        _raise_descriptor_limit(compiled)
        if user is not None:
            files = [pid_file.path, *sockets, *map(Path, listeners.unix_paths())]
            drop_privileges(user, service.runtime_dir, files)
            log_event(_log, logging.INFO, "privileges_dropped", user=describe())
        io, missing = choose_io(service.io)
        if missing is not None:
            log_event(_log, logging.WARNING, "io_uring_missing", reason=missing, io=io)
        for address in compiled.listeners:
            log_event(_log, logging.INFO, "listening", proxy=compiled.name, address=address)
        estate = _make_estate(compiled, listeners, stats, runtime_dir)
        own = Own(pid_file, control, Notify(os.environ))
        return Arbiter(estate, mains, own, tuple(flags)).run()


def _make_estate(
    compiled: Compiled, listeners: Listeners, stats: object, runtime_dir: Path
) -> Estate:
    page = _core.Page.create(BUDGET_SLOTS)
    boxes = Boxes()
    channel, controller_end = socket_pair(socket.SOCK_SEQPACKET)
    life_reader, life_writer = os.pipe2(os.O_CLOEXEC)
    return Estate(
        page=page,
        boxes=boxes,
        listeners=listeners,
        epochs=Epochs(compiled, listeners, page, boxes),
        channel=channel,
        controller_end=controller_end,
        stats=stats,
        life_reader=life_reader,
        life_writer=life_writer,
        runtime_dir=runtime_dir,
    )


def _remove(files: Sequence[Path]) -> None:
    for file in files:
        with contextlib.suppress(OSError):  # given up rights may not reach the directory
            file.unlink(missing_ok=True)


def _raise_descriptor_limit(compiled: Compiled) -> None:
    """Use all the descriptors that a process may have.

    One worker must be able to hold every client and every server: clients may all come to one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = compiled.core["client_connections_max"] + (compiled.connections_max or 0)
    needed += _DESCRIPTORS_OWN
    if hard != resource.RLIM_INFINITY and hard < needed:
        hint = "raise LimitNOFILE or lower proxy.max_clients"
        log_event(_log, logging.WARNING, "few_descriptors", limit=hard, needed=needed, hint=hint)
