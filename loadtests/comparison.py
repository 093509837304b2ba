"""The one table of a load test: the same storm through the proxy and directly, side by side.

Pure: figures in, Markdown and findings out. Next on the path: `run.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ERRORS_SHOWN = 5
"""Different errors listed below the table for one target."""
NOTHING = "–"
WHOLE = "whole"
"""Kind of the requests that are no single login or statement but transactions and lives."""


@dataclass(frozen=True)
class Outcome:
    """One run against one target: its figures and the most server connections at a time."""

    target: str
    figures: Mapping[str, Any]
    servers_most: int
    servers_allowed: int | None = None

    def row(self, name: str) -> Mapping[str, Any]:
        """Return the figures of the requests of a name; empty ones if there were none."""
        for row in self.figures["requests"]:
            if row["name"] == name:
                found: Mapping[str, Any] = row
                return found
        return {"requests": 0, "failures": 0, "errors": {}, "latency_ms": {}, "service_ms": {}}

    def sum(self, key: str) -> int:
        """Return `requests` or `failures` over all logins and statements."""
        rows = (row for row in self.figures["requests"] if row["kind"] != WHOLE)
        return sum(row[key] for row in rows)

    @property
    def planned(self) -> int:
        """How many clients were to come."""
        return int(self.figures["plan"]["lives"])

    @property
    def served(self) -> int:
        """How many clients got what they came for, and it was their own."""
        life = self.row("life")
        return int(life["requests"]) - int(life["failures"])

    @property
    def per_second(self) -> float:
        """Clients served a second, from the first intended arrival to the last one's commit."""
        elapsed_s = float(self.figures["elapsed_s"])
        return self.served / elapsed_s if elapsed_s > 0 else 0.0

    def findings(self) -> list[str]:
        """Return what went wrong, one sentence each; nothing if all is well."""
        found = []
        if self.served < self.planned:
            found.append(f"{self.planned - self.served:,} of {self.planned:,} clients not served")
        if self.planned == 0:
            found.append("no client was to come")
        if failures := self.sum("failures"):
            found.append(f"{failures:,} of {self.sum('requests'):,} requests failed")
        if self.servers_allowed is not None and self.servers_most > self.servers_allowed:
            found.append(f"{self.servers_most} server connections, {self.servers_allowed} allowed")
        return found


def shown(values: Mapping[str, float]) -> str:
    """Return p50 / p95 / p99 as the table shows them."""
    if not values:
        return NOTHING
    return " / ".join(_number(values[name]) for name in ("p50", "p95", "p99"))


def _number(value: float) -> str:
    """Return a time with three digits that say something, but no more than microseconds."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _lines(one: Outcome) -> list[tuple[str, str]]:
    """Return the table's rows for one target: what, and its figure."""
    life, connect, transaction = (one.row(name) for name in ("life", "connect", "transaction"))
    unserved = one.planned - one.served
    return [
        ("clients that were to come", f"{one.planned:,}"),
        ("clients not served", f"{unserved:,}"),
        ("logins and statements", f"{one.sum('requests'):,}"),
        ("of these failed", f"{one.sum('failures'):,}"),
        ("connect, from the intended start, ms", shown(connect["latency_ms"])),
        ("connect, service time, ms", shown(connect["service_ms"])),
        ("transaction, ms", shown(transaction["latency_ms"])),
        ("whole life, from the intended start, ms", shown(life["latency_ms"])),
        ("whole life, service time, ms", shown(life["service_ms"])),
        ("clients served a second", f"{one.per_second:,.1f}"),
        ("most clients at a time", f"{one.figures['connected_most']:,}"),
        ("most server connections at a time", f"{one.servers_most:,}"),
        ("Locust's own use of one core", f"{one.figures['locust_busy']:.0%}"),
    ]


def table(outcomes: list[Outcome]) -> str:
    """Return the Markdown table, a column a target; there is at least one."""
    columns = [_lines(one) for one in outcomes]
    lines = [
        "| p50 / p95 / p99 | " + " | ".join(one.target for one in outcomes) + " |",
        "| --- |" + " ---: |" * len(outcomes),
    ]
    lines += [
        f"| {cells[0][0]} | " + " | ".join(figure for _, figure in cells) + " |"
        for cells in zip(*columns, strict=True)
    ]
    return "\n".join(lines)


def errors(one: Outcome) -> list[str]:
    """Return the errors of one target's logins and statements, the most frequent first."""
    counted = [
        (count, f"{row['name']}: {text}")
        for row in one.figures["requests"]
        for text, count in row["errors"].items()
        if row["kind"] != WHOLE
    ]
    return [f"{count:,} × {text}" for count, text in sorted(counted, reverse=True)[:ERRORS_SHOWN]]


def page(head: str, outcomes: list[Outcome]) -> str:
    """Return the whole page: what was run, the table, and what failed where."""
    parts = [head, table(outcomes)]
    for one in outcomes:
        found = one.findings()
        verdict = "; ".join(found) if found else "all clients served"
        listed = "".join(f"\n- {line}" for line in errors(one))
        parts.append(f"{one.target}: {verdict}.{listed}")
    return "\n\n".join(parts) + "\n"
