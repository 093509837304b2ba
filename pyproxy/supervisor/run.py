"""``pyproxy run``: from a configuration file to a running service.

Puts the parts in order: configuration, pid file, listeners, arbiter. Next on the path:
``pidfile.py``, ``listeners.py``, ``arbiter.py``.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Sequence

from pyproxy.config.compile import compile_config
from pyproxy.config.load import load
from pyproxy.log import log_event, set_up_logging
from pyproxy.supervisor.arbiter import Arbiter
from pyproxy.supervisor.listeners import Listeners
from pyproxy.supervisor.pidfile import PidFile
from pyproxy.worker.main import run_worker

_log = logging.getLogger("pyproxy.supervisor")


def run_service(file: str, flags: Sequence[str]) -> int:
    """Run the service in the foreground; return the exit code.

    ``file`` is the configuration, ``flags`` are ``section.key=value``. Raises ``ConfigError`` and
    ``OperatorError`` (the operator's fault) before the first client is taken, and never after.
    """
    loaded = load(file, flags)
    compiled = compile_config(loaded)
    settings = loaded.settings
    set_up_logging(settings.log.format, settings.log.level)
    for remark in loaded.remarks:
        log_event(_log, logging.WARNING, "setting_without_effect", remark=remark)
    pid_file = PidFile(os.path.join(loaded.file.parent, settings.supervisor.runtime_dir))
    listeners = Listeners()
    try:
        listeners.bind(compiled.listeners)
        _raise_descriptor_limit(settings.proxy[0].max_clients)
        for address in compiled.listeners:
            log_event(_log, logging.INFO, "listening", proxy=compiled.name, address=address)

        def work(generation: int) -> int:
            return run_worker(compiled, listeners.descriptors(), settings.supervisor, generation)

        arbiter = Arbiter(
            work,
            shutdown_timeout_ms=settings.supervisor.shutdown_timeout,
            on_stop=listeners.close,
            on_fork=pid_file.close_in_child,
        )
        return arbiter.run()
    finally:
        listeners.close()
        pid_file.remove()


def _raise_descriptor_limit(clients: int) -> None:
    """Use all the descriptors that this process may have: each client and each server takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < clients:
        hint = "raise LimitNOFILE or lower proxy.max_clients"
        log_event(_log, logging.WARNING, "few_descriptors", limit=hard, clients=clients, hint=hint)
