"""Shows answers to people: tables and ``key  value`` lists, plain, with colour on a terminal.

Not here: ``--json``, which prints the answer as it came. Next on the path: ``../commands.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

_WARNING_STATES = ("paused", "draining", "starting", "waiting", "stopping", "no supervisor")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    right = [all(_is_number(row.get(name)) for row in rows) for name in columns]
    lines = [_line(columns, columns, widths, right)]
    for row in cells:
        shown = [_colour(name, text) for name, text in zip(columns, row, strict=True)]
        lines.append(_line(shown, row, widths, right))
    return "\n".join(lines)


def listing(values: Mapping[str, Any]) -> str:
    """Return one ``key  value`` line a field; tables inside are unfolded as ``key.inner``."""
    flat = list(_flat(values, ""))
    width = max((len(name) for name, _ in flat), default=0)
    return "\n".join(
        f"{name.ljust(width)}  {_colour(name, _cell(value))}".rstrip() for name, value in flat
    )


def _flat(values: Mapping[str, Any], prefix: str) -> Any:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _line(
    shown: Sequence[str], plain: Sequence[str], widths: Sequence[int], right: Sequence[bool]
) -> str:
    """Pad by the plain text, for colours have no width."""
    parts = []
    for text, bare, width, to_right in zip(shown, plain, widths, right, strict=True):
        gap = " " * (width - len(bare))
        parts.append(gap + text if to_right else text + gap)
    return "  ".join(parts).rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "-"
    text = str(value)
    return text if text.isprintable() else repr(text)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _colour(name: str, text: str) -> str:
    if name != "state":
        return text
    return click.style(text, fg="yellow" if text in _WARNING_STATES else "green")
