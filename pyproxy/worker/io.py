"""Which way of waiting for sockets an engine gets: io_uring where it works, else epoll.

Containers often forbid io_uring, and a host can forbid it while the service runs; so the supervisor
asks once, for the log, and every worker asks again. Not here: what is asked (`rust/engine`, the
function `probe`). Next on the path: ``main.py``.
"""

from __future__ import annotations

from pyproxy import _core, exitcodes
from pyproxy.errors import OperatorError


def choose_io(setting: str) -> tuple[str, str | None]:
    """Return ``epoll`` or ``io_uring``, and what io_uring lacks if it was wanted and cannot be had.

    ``setting`` is ``supervisor.io``. Raises ``OperatorError`` (78) if that is ``io_uring`` and it
    cannot be had: the operator's fault, or the host's.
    """
    if setting == "epoll":
        return "epoll", None
    missing = _core.io_uring_missing()
    if missing is None:
        return "io_uring", None
    if setting == "io_uring":
        text = f"supervisor.io: io_uring cannot be had: {missing}; allow it, or set io to auto"
        raise OperatorError(text, exitcodes.CONFIG)
    return "epoll", missing
