"""The life pipe, seen from a child: its end means that the supervisor is gone.

The supervisor alone holds the write end, and no child is killed with it (no PDEATHSIG): whoever
serves goes on for a while. Not here: what each child does then. Next on the path:
``worker/main.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent

_READ = 1  # libev's EV_READ


class LifeWatch:
    """Watches the pipe in this process's hub."""

    def __init__(self, descriptor: int, on_end: Callable[[], None]) -> None:
        """Begin; ``on_end`` is called once, in a greenlet, when the supervisor is gone."""
        self._on_end = on_end
        self._watcher: Any = gevent.get_hub().loop.io(descriptor, _READ)
        self._watcher.start(self._ended)

    def _ended(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        gevent.spawn(self._on_end)
