"""The last words of each child: a memfd that outlives it, so that its crash can be told in the log.

The supervisor makes it and keeps it open; in the child, warnings, an uncaught traceback, a fault
(`faulthandler`) and a panic of the engine are written there as well. Not here: when a child has
crashed (``arbiter.py``). Next on the path: ``children.py``.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re

from pyproxy.limits import LAST_LINES, LAST_WORDS_BYTES_MAX
from pyproxy.log import EventFormatter

_FRAME = re.compile(r'  File ".*", line \d+ in ')  # as faulthandler writes it
_FRAMES_MAX = 3
_MODULES = "Extension modules: "
_KEPT_BYTES = LAST_WORDS_BYTES_MAX // 4


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
        """Return the last lines that the child left, at most ``LAST_LINES``.

        Of a fault's dump only the innermost frames are kept, or they would hide its cause.
        """
        raw = os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)
        kept: list[str] = []
        frames = 0
        for line in raw[-LAST_WORDS_BYTES_MAX:].decode(errors="replace").splitlines():
            frames = frames + 1 if _FRAME.match(line) else 0
            if line.strip() and frames <= _FRAMES_MAX and not line.startswith(_MODULES):
                kept.append(line)
        return kept[-LAST_LINES:]

    def record(self) -> None:
        """Begin to record; in the child, before anything can go wrong."""
        faulthandler.enable(file=self.descriptor)
        logging.getLogger().addHandler(_Recorder(self))

    def add(self, text: str) -> None:
        """Append a text; when that gets too much, the older half is forgotten."""
        if os.lseek(self.descriptor, 0, os.SEEK_CUR) > LAST_WORDS_BYTES_MAX // 2:
            size = os.fstat(self.descriptor).st_size
            newest = os.pread(self.descriptor, _KEPT_BYTES, size - _KEPT_BYTES)
            self.clear()
            os.write(self.descriptor, newest)
        os.write(self.descriptor, text.encode(errors="replace")[-_KEPT_BYTES:])


class _Recorder(logging.Handler):
    """Keeps log lines from WARNING on."""

    def __init__(self, words: LastWords) -> None:
        super().__init__(logging.WARNING)
        self._words = words
        self.setFormatter(EventFormatter("logfmt"))

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line."""
        self._words.add(self.format(record) + "\n")
