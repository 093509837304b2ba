"""The last words of each child: a memfd that outlives it, so that its crash can be told in the log.

The supervisor makes it and keeps it open; in the child, warnings, an uncaught traceback, a fault
(`faulthandler`) and a panic of the engine are written there as well. Not here: when a child has
crashed (``arbiter.py``). Next on the path: ``children.py``.
"""

from __future__ import annotations

import faulthandler
import logging
import os

from pyproxy.limits import LAST_LINES, LAST_WORDS_BYTES_MAX
from pyproxy.log import EventFormatter


class LastWords:
    """The last words of one child, over all its lives; each life begins empty."""

    def __init__(self, name: str) -> None:
        """Make the memory; ``name`` is shown in /proc."""
        self.descriptor = os.memfd_create(f"last words of {name}", os.MFD_CLOEXEC)

    def clear(self) -> None:
        """Forget the last life; before each fork."""
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)

    def lines(self) -> list[str]:
        """Return the last lines that the child left, at most ``LAST_LINES``."""
        raw = os.pread(self.descriptor, LAST_WORDS_BYTES_MAX, 0)
        text = raw.decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()][-LAST_LINES:]

    def record(self) -> None:
        """Begin to record; in the child, before anything can go wrong."""
        faulthandler.enable(file=self.descriptor)
        logging.getLogger().addHandler(_Recorder(self))

    def add(self, text: str) -> None:
        """Append a text; what is too much is left out, for the beginning tells the cause."""
        room = LAST_WORDS_BYTES_MAX - os.lseek(self.descriptor, 0, os.SEEK_CUR)
        if room > 0:
            os.write(self.descriptor, text.encode(errors="replace")[:room])


class _Recorder(logging.Handler):
    """Keeps log lines from WARNING on."""

    def __init__(self, words: LastWords) -> None:
        super().__init__(logging.WARNING)
        self._words = words
        self.setFormatter(EventFormatter("logfmt"))

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line."""
        self._words.add(self.format(record) + "\n")
