"""The supervisor's loop: one ``poll`` over descriptors, each with the function that is called.

The original ``select.poll``, so that there is no hub and forking stays safe. Not here: deadlines
(the caller knows how long it may wait). Next on the path: ``arbiter.py``.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

import gevent.monkey

_poll: Callable[[], Any] = gevent.monkey.get_original("select", "poll")


class Loop:
    """Descriptors that are watched."""

    def __init__(self) -> None:
        """Watch nothing."""
        self._poll = _poll()
        self._ready: dict[int, Callable[[], None]] = {}

    def watch(self, descriptor: int, ready: Callable[[], None], *, write: bool = False) -> None:
        """Call ``ready`` whenever a descriptor can be read (or written), until ``forget``."""
        self._ready[descriptor] = ready
        self._poll.register(descriptor, select.POLLOUT if write else select.POLLIN)

    def forget(self, descriptor: int) -> None:
        """Watch a descriptor no longer; before it is closed."""
        del self._ready[descriptor]
        self._poll.unregister(descriptor)

    def turn(self, wait_s: float) -> None:
        """Wait at most ``wait_s`` seconds, and serve what is ready."""
        for descriptor, _events in self._poll.poll(max(0.0, wait_s) * 1000):
            ready = self._ready.get(descriptor)
            if ready is not None:  # an earlier one of this turn may have forgotten it
                ready()
