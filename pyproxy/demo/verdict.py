"""The verdict: both storms side by side, and whether the proxy kept what it promises.

Pure. Next on the path: ``run.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from pyproxy.demo.storm import Outcome

_COLUMNS = ("", "straight to PostgreSQL", "through pyproxy")
_ERRORS_SHOWN = 3


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` (0–1) of the ``ordered`` values lie (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def broken_promises(outcome: Outcome, servers: int) -> list[str]:
    """Return what the proxy did not keep; empty is good. ``servers`` is its limit."""
    found = []
    if outcome.errors:
        found.append(
            f"{len(outcome.errors)} of {len(outcome.lives)} clients were refused or failed"
        )
    if outcome.most_servers > servers:
        found.append(f"{outcome.most_servers} server connections, {servers} are the limit")
    if outcome.kept != outcome.confirmed:
        found.append(f"{outcome.confirmed} commits were confirmed, {outcome.kept} are kept")
    return found


def praise(outcome: Outcome) -> str:
    """Return the sentence for a storm that broke no promise."""
    clients, servers = len(outcome.lives), outcome.most_servers
    return f"{clients:,} clients on {servers} server connections, no error, no commit lost"


def table(direct: Outcome, proxied: Outcome) -> str:
    """Return the table of both storms, and below it what failed, most frequent first."""
    both = (direct, proxied)
    rows = [
        ("clients", *(f"{len(one.lives):,}" for one in both)),
        ("most at a time", *(f"{one.most_clients:,}" for one in both)),
        ("answered", *(f"{len(one.answered):,}" for one in both)),
        ("refused or failed", *(f"{len(one.errors):,}" for one in both)),
        ("confirmed commits kept", *(f"{one.kept:,}" for one in both)),
        ("server connections, most", *(f"{one.most_servers:,}" for one in both)),
        ("connect + query + close, p50", *(_milliseconds(one, 0.50) for one in both)),
        ("connect + query + close, p99", *(_milliseconds(one, 0.99) for one in both)),
    ]
    widths = [max(len(row[n]) for row in (_COLUMNS, *rows)) for n in range(3)]
    lines = [_line(_COLUMNS, widths), "  ".join("-" * width for width in widths)]
    lines += [_line(row, widths) for row in rows]
    for name, one in zip(_COLUMNS[1:], both, strict=True):
        for error, count in Counter(one.errors).most_common(_ERRORS_SHOWN):
            lines.append(f"{name}: {count:,} x {error}")
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])


def _milliseconds(outcome: Outcome, share: float) -> str:
    if not outcome.answered:
        return "-"
    return f"{1000 * percentile(outcome.answered, share):,.1f} ms"
