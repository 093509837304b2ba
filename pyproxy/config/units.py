"""Human units: ``"30s"`` and ``"64MiB"`` in, whole milliseconds and bytes out.

Not here: which setting takes which unit (``model.py``). Next on the path: ``model.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_BYTES = {
    "": 1,
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,3})?)\s*(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d{1,15})\s*([A-Za-z]{0,3})")


def parse_duration(text: str) -> int:
    """Turn ``"250ms"``, ``"30s"``, ``"1.5h"`` or ``"1h 30m"`` into milliseconds.

    Returns a whole number of milliseconds, at least 0. Raises ``ValueError`` (the operator's fault)
    with a sentence that shows the right form.
    """
    rest = text.strip()
    total = 0.0
    if not rest:
        raise ValueError("is empty; write a number and a unit, like 30s")
    while rest:
        match = _DURATION.match(rest)
        if match is None:
            raise ValueError(
                f"{text!r} is not a time; write a number and ms, s, m, h or d, like 30s"
            )
        total += float(match[1]) * _MS[match[2]]
        rest = rest[match.end() :].lstrip()
    return round(total)


def parse_size(text: str) -> int:
    """Turn ``"64MiB"``, ``"1500kB"`` or ``"4096"`` into bytes.

    Raises ``ValueError`` (the operator's fault) with a sentence that shows the right form.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2] not in _BYTES:
        raise ValueError(f"{text!r} is not a size; write a number and B, kB, KiB, MiB or GiB")
    return int(match[1]) * _BYTES[match[2]]


def format_duration(ms: int) -> str:
    """Write milliseconds in the largest unit that leaves a whole number: 1800000 is ``30m``."""
    for unit in ("d", "h", "m", "s"):
        if ms and ms % _MS[unit] == 0:
            return f"{ms // _MS[unit]}{unit}"
    return f"{ms}ms" if ms else "0s"


@dataclass(frozen=True, slots=True)
class Duration:
    """Annotates an ``int`` field that is written as a time and held in milliseconds.

    ``least`` and ``most`` bound it, in the same notation; ``why`` gives the reason of the bounds
    and ends the error message.
    """

    least: str = "0s"
    most: str = "365d"
    why: str = ""

    def label(self) -> str:
        """Say the type and its range for the reference."""
        return f"time, {self.least} – {self.most}"

    def check(self, value: Any) -> int:
        """Validate one value of the configuration."""
        if not isinstance(value, str):
            raise PydanticCustomError(
                "duration", 'must be a time in quotes with a unit, like "30s"'
            )
        try:
            ms = parse_duration(value)
        except ValueError as error:
            raise PydanticCustomError("duration", "{text}", {"text": str(error)}) from None
        if not parse_duration(self.least) <= ms <= parse_duration(self.most):
            text = f"{value!r} is out of range: {self.least} to {self.most}"
            text += f" ({self.why})" if self.why else ""
            raise PydanticCustomError("duration", "{text}", {"text": text})
        return ms

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the written form for editors."""
        return {"type": "string", "pattern": f"^\\s*({_DURATION.pattern}\\s*)+$"}

    def __get_pydantic_core_schema__(
        self, _source: Any, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Give pydantic this annotation's check."""
        return core_schema.no_info_plain_validator_function(self.check)
