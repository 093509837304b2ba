"""The pid file in the runtime directory; its lock keeps a second service out of the same directory.

Not here: who reads it. Next on the path: ``listeners.py``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from pyproxy import exitcodes
from pyproxy.errors import OperatorError

NAME = "pyproxy.pid"


class PidFile:
    """A locked file that holds this process's id for as long as the process lives."""

    def __init__(self, runtime_dir: str) -> None:
        """Make the directory (mode 0755) if it is missing, lock the file and write the id.

        Raises ``OperatorError``: 69 if another service holds the lock, 78 if the directory is no
        good.
        """
        self.path = Path(runtime_dir) / NAME
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            # The directory may be the service's user's: root must not write where a link points.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self.descriptor = os.open(self.path, flags, 0o644)
        except OSError as error:
            text = f"cannot write {self.path}: {error.strerror}; set supervisor.runtime_dir"
            text += " to a directory that this user may write"
            raise OperatorError(text, exitcodes.CONFIG) from error
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self.descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(self.descriptor)
            text = f"another service (pid {owner}) runs with {self.path.parent}; stop it, or set"
            text += " another supervisor.runtime_dir"
            raise OperatorError(text, exitcodes.UNAVAILABLE) from None
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"{os.getpid()}\n".encode(), 0)

    def remove(self) -> None:
        """Remove the file and give the lock back."""
        with contextlib.suppress(OSError):  # given up rights may not reach the directory
            self.path.unlink(missing_ok=True)
        os.close(self.descriptor)

    def close_in_child(self) -> None:
        """Close a forked child's copy; the lock stays with the supervisor."""
        os.close(self.descriptor)
