"""What one load test measured: every latency and service time, by kind and name of request.

Locust's own statistics round to whole milliseconds or two digits and know no service time, so its
request events are kept here as well, unrounded. Percentiles are those of requests that succeeded: a
refusal is quick and would flatter. Pure: no clock, no Locust. Next on the path: `comparison.py`.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PERCENTS = (50, 95, 99)
ERROR_TEXTS_MAX = 20
"""Different error texts kept for one kind of request; further ones are counted as one."""
OTHER_ERRORS = "other errors"


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest of some values, in order, that `percent` % of them do not exceed.

    There is at least one value; 0 < `percent` <= 100.
    """
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p95, p99 and max of some values in any order; nothing if there are none."""
    if not values:
        return {}
    ordered = sorted(values)
    found = {f"p{percent}": percentile(ordered, percent) for percent in PERCENTS}
    return found | {"max": ordered[-1]}


@dataclass
class Measured:
    """The requests of one kind and name."""

    latency_ms: array[float] = field(default_factory=lambda: array("d"))
    service_ms: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)

    def add_failure(self, error: str) -> None:
        """Count a failure by the first line of its text."""
        text = error.strip().partition("\n")[0] or "no text"
        if text not in self.errors and len(self.errors) >= ERROR_TEXTS_MAX:
            text = OTHER_ERRORS
        self.errors[text] += 1


class Recorder:
    """Takes one call a request and sums them up."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._measured: dict[tuple[str, str], Measured] = {}

    def add(
        self, kind: str, name: str, latency_ms: float, service_ms: float, error: str | None
    ) -> None:
        """Keep one request; `error` is its failure's text, None for a success."""
        measured = self._measured.setdefault((kind, name), Measured())
        if error is not None:
            measured.add_failure(error)
            return
        measured.latency_ms.append(latency_ms)
        measured.service_ms.append(service_ms)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each kind and name, in the order in which they were first seen."""
        return [
            {
                "kind": kind,
                "name": name,
                "requests": len(one.latency_ms) + one.errors.total(),
                "failures": one.errors.total(),
                "errors": dict(one.errors.most_common()),
                "latency_ms": summary(one.latency_ms),
                "service_ms": summary(one.service_ms),
            }
            for (kind, name), one in self._measured.items()
        ]
