"""``config show`` and ``config schema``: what counts, where it was written, and the whole table.

Values of secrets are never among the settings, only where they are kept. Not here: reading and
checking (``../config/load.py``). Next on the path: ``../config/load.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from pyproxy.config.load import Loaded, load
from pyproxy.config.model import Settings, reload_class
from pyproxy.config.problems import Path, show_path
from pyproxy.config.units import Duration, format_duration


def rows(file: str, flags: Sequence[str], *, origin: bool) -> list[dict[str, Any]]:
    """Return a row a setting: its path and its value.

    With ``origin`` also where that was written, and what a reload does with a change (live,
    recycle, restart). Raises ``ConfigError``.
    """
    loaded = load(file, flags)
    found = []
    for path, value, reload in _settings(loaded, loaded.settings, ()):
        row = {"setting": show_path(path), "value": value}
        if origin:
            written = loaded.sources.written(path)
            row["origin"] = str(loaded.sources.origin(path)) if written else "default"
            row["reload"] = reload
        found.append(row)
    return found


def schema() -> str:
    """Return the JSON Schema of the configuration file."""
    made = Settings.model_json_schema(mode="validation")
    for section in (made, *made["$defs"].values()):
        for field in section["properties"].values():
            if "$ref" in field or "items" in field:
                field.pop("default", None)  # a whole table: its own fields have their defaults
            if "reload" not in field:
                field["reload"] = "live"
    heading = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "pyproxy"}
    return json.dumps({**made, **heading}, indent=2)


def _settings(loaded: Loaded, section: BaseModel, path: Path) -> Iterator[tuple[Path, Any, str]]:
    for name, info in type(section).model_fields.items():
        value, here = getattr(section, name), (*path, name)
        if isinstance(value, BaseModel):
            yield from _settings(loaded, value, here)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            for index, item in enumerate(value):
                yield from _settings(loaded, item, (*here, index))
        else:
            is_time = any(isinstance(each, Duration) for each in info.metadata)
            yield here, format_duration(value) if is_time else value, reload_class(info)
