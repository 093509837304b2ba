"""What can be wrong with a configuration, told as one line a problem, with its place.

Not here: the checks themselves (``model.py``, ``rules.py``, ``secrets.py``). Next on the path:
``locate.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

Path = tuple[str | int, ...]
"""A place in the configuration: ``("proxy", 0, "pool", "mode")``."""


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where a value was written: a file and its line (from 1), or a variable or flag."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        """Write ``file:line``, or the source alone where lines make no sense."""
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that the operator has to change."""

    origin: Origin
    path: Path
    message: str

    def __str__(self) -> str:
        """Write the line that the operator reads."""
        where = show_path(self.path)
        return ": ".join(filter(None, (str(self.origin), where, self.message)))


class ConfigError(Exception):
    """The configuration cannot be used: the operator's fault. Carries every problem found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Keep the problems in the order of their places."""
        self.problems = sorted(problems, key=lambda problem: (problem.origin, str(problem)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def show_path(path: Path) -> str:
    """Write a path as a person would: ``proxy[0].pool.mode``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def nearest(word: str, known: Iterable[str], *, show_all: bool = True) -> str:
    """Return ``; did you mean 'x'?`` for the most similar known word, or list what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known here: {', '.join(names)}" if show_all and names else ""
