"""What the demo takes from its surroundings and what it keeps out: variables, folder, signals.

A machine on which somebody works with real databases has libpq's variables set, and this proxy's.
Not here: PostgreSQL's programs (``binaries.py``). Next on the path: ``binaries.py``.
"""

from __future__ import annotations

import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pyproxy import exitcodes
from pyproxy.demo.binaries import reachable_by_all, server_account
from pyproxy.errors import OperatorError

FOREIGN = ("PG", "PYPROXY__", "NOTIFY_SOCKET", "WATCHDOG_")
"""How variables begin that would send libpq elsewhere, change our proxy, or tell a service manager
that our proxy is ready."""
FILES_SPARE = 100
"""Open files that this process needs besides one for each client."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndedError(Exception):
    """A signal asked for an end."""


def forget_foreign_settings(environment: MutableMapping[str, str]) -> None:
    """Remove all variables that mean somebody else's servers, for this process and its children."""
    for name in [name for name in environment if name.startswith(FOREIGN)]:
        del environment[name]


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Give a folder that the database's account can enter: it is another one if this is root.

    Raises ``OperatorError`` (69) if there is none.
    """
    try:
        scratch = Path(tempfile.mkdtemp(prefix=prefix))
    except OSError as error:
        text = f"no folder can be made for the database's files: {error.strerror}; set TMPDIR"
        raise OperatorError(text, exitcodes.UNAVAILABLE) from None
    try:
        scratch.chmod(0o755)
        if server_account() and not reachable_by_all(scratch):
            text = "PostgreSQL does not run as root, and no other account can enter"
            text += f" {scratch.parent}; set TMPDIR=/tmp"
            raise OperatorError(text, exitcodes.UNAVAILABLE)
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_open_files(clients: int) -> None:
    """Raise this process's limit of open files as far as its clients need.

    Raises ``OperatorError`` (69) if it cannot be raised so far: a client that finds no file would
    count as the database's failure.
    """
    needed = clients + FILES_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        text = f"{clients:,} clients need {needed:,} open files, and this account may have"
        raise OperatorError(
            f"{text} {hard:,} (ulimit -Hn); ask for at most --clients {max(1, hard - FILES_SPARE)}",
            exitcodes.UNAVAILABLE,
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _end(_number: int, _frame: FrameType | None) -> None:
    ignore_signals()
    raise EndedError


def let_signals_end() -> None:
    """Let the first signal that asks for an end raise ``EndedError``; further ones do nothing."""
    for each in _ENDING:
        signal.signal(each, _end)


def ignore_signals() -> None:
    """Let nothing interrupt the tidying up, which is bounded."""
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
