"""Signals of the supervisor: handlers only enqueue, a pipe wakes the loop.

Not here: what a signal means (``arbiter.py``). Next on the path: ``arbiter.py``.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
HANDLED = (
    *STOPPING,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
)


class SignalQueue:
    """Signals that have arrived, in order; ``descriptor`` is readable while there may be some."""

    def __init__(self) -> None:
        """Install the handlers; only the main thread may."""
        self.descriptor, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pending: deque[signal.Signals] = deque()
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._enqueue) for number in HANDLED}

    def _enqueue(self, number: int, _frame: FrameType | None) -> None:
        self._pending.append(signal.Signals(number))

    def take(self) -> list[signal.Signals]:
        """Return what has arrived since the last call."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.descriptor, 4096):
                pass
        taken = []
        while self._pending:
            taken.append(self._pending.popleft())
        return taken

    def restore(self) -> None:
        """Put the former handlers back and close the pipe: at the end, and first in a child."""
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self.descriptor)
        os.close(self._writer)
