"""The one place that forks: from one thread, with the collector's pages frozen, signals held back.

Not here: which children there are (``children.py``). Next on the path: ``children.py``.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import gevent.monkey

from pyproxy import exitcodes
from pyproxy.supervisor.signals import HANDLED

_fork: Callable[[], int] = gevent.monkey.get_original("os", "fork")


@dataclass(frozen=True)
class Forked:
    """A child process: its id, and a descriptor that is readable when it has ended."""

    pid: int
    pidfd: int


def import_for_children() -> None:
    """Import what a child's hub would import by itself: children then share it, and need no files.

    Makes no hub and no thread.
    """
    import gevent.threadpool

    # Reading such a setting imports the class that it names.
    _ = (gevent.config.loop, gevent.config.resolver, gevent.config.threadpool)


def fork_child(
    main: Callable[[], int],
    *,
    prepare: Callable[[], None] = lambda: None,
    lament: Callable[[str], None] = lambda _text: None,
    signals_blocked: bool = False,
) -> Forked:
    """Fork; the child calls ``prepare``, then ``main``, and exits with what that returns.

    An exception there is printed, handed to ``lament`` as text, and the exit code is 70. The child
    starts with the signals of the service blocked; they stay so (for handlers of its own) only with
    ``signals_blocked``. Raises ``RuntimeError`` (a bug) if this process has a second thread, which
    the child would lose together with its locks, ``OSError`` if the system has no room for a child.
    """
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads != 1:
        raise RuntimeError(f"the supervisor has {threads} threads; a fork would lose others")
    gc.collect()
    gc.freeze()  # the collector would write to, and so copy, every page that the child shares
    # Until the child has handlers of its own, a signal must wait rather than end it half-made.
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        pid = _fork()
        if pid == 0:
            _become(main, prepare, lament, signals_blocked)
        try:
            return Forked(pid, os.pidfd_open(pid))
        except OSError:
            os.kill(
                pid, signal.SIGKILL
            )  # it could not be watched; its id is ours until it is reaped
            os.waitid(os.P_PID, pid, os.WEXITED)
            raise
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def _become(
    main: Callable[[], int],
    prepare: Callable[[], None],
    lament: Callable[[str], None],
    signals_blocked: bool,
) -> NoReturn:
    """Be the child; never returns into the supervisor's stack."""
    code = exitcodes.WORKER_FAILED
    try:
        # A Ctrl-C at the terminal is for the supervisor, which passes it on, once.
        os.setpgid(0, 0)
        prepare()
        if not signals_blocked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        code = main()
    except BaseException:
        logging.getLogger("pyproxy.supervisor").exception("child_failed")
        lament(traceback.format_exc())
    finally:
        os._exit(code)
