"""Reads and merges the places that settings come from, and remembers which came from where.

Order, the first wins: flags (``--set key=value``), ``PYPROXY__SECTION__KEY`` in the environment,
``conf.d/*.toml`` beside the file (the later name wins; a ``[[proxy]]`` merges with the one of its
name, other lists are replaced), the file; defaults live in ``model.py``.
Not here: whether a value makes sense. Next on the path: ``load.py``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from pyproxy.config.locate import key_lines
from pyproxy.config.problems import ConfigError, Origin, Path, Problem
from pyproxy.limits import CONFIG_BYTES_MAX

ENV_PREFIX = "PYPROXY__"
DEFAULT_RUNTIME_DIR = "/run/pyproxy"
"""Where verbs look for the service if nobody says otherwise; kept apart from pydantic for them."""
_SCALAR = re.compile(r"true|false|[+-]?\d+(\.\d+)?|[\[\"'{].*", re.DOTALL)


@dataclass
class Sources:
    """Merged values, and the origin of each path in them."""

    file: FilePath
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path, Origin] = field(default_factory=dict)

    def origin(self, path: Path) -> Origin:
        """Return where a path was written, or else where the nearest one above it was."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path[:-1]
        return Origin(str(self.file))

    def written(self, path: Path) -> bool:
        """Return whether the operator wrote this path at all."""
        return path in self.origins


def read_sources(
    file: FilePath, environment: Mapping[str, str], flags: Iterable[str] = ()
) -> Sources:
    """Read and merge everything for one configuration file.

    ``flags`` are ``section.key=value``. Raises ``ConfigError`` for what cannot be read at all: a
    missing file, broken TOML, a variable or flag that names nothing.
    """
    sources = Sources(file)
    problems: list[Problem] = []
    parts = [file, *sorted((file.parent / "conf.d").glob("*.toml"))]
    for part in parts:
        try:
            _merge_file(sources, part)
        except ConfigError as error:
            problems.extend(error.problems)
    for name in sorted(environment):
        if name.startswith(ENV_PREFIX):
            keys = name.removeprefix(ENV_PREFIX).lower().split("__")
            problems += _assign(sources, keys, environment[name], Origin(f"environment {name}"))
    for flag in flags:
        key, equals, value = flag.partition("=")
        origin = Origin(f"flag --set {key}")
        if equals:
            problems += _assign(sources, key.strip().split("."), value.strip(), origin)
        else:
            problems.append(Problem(origin, (), "must be written as section.key=value"))
    if problems:
        raise ConfigError(problems)
    return sources


def read_toml(file: FilePath) -> tuple[dict[str, Any], dict[Path, int]]:
    """Read a TOML file; return its values and the line of each path.

    Raises ``ConfigError`` with the line of a syntax error, or the reason why the file cannot be
    read.
    """
    try:
        raw = file.read_bytes()
        if len(raw) > CONFIG_BYTES_MAX:
            raise ConfigError([Problem(Origin(str(file)), (), "is larger than 4 MiB")])
        text = raw.decode()
        data = tomllib.loads(text)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise ConfigError([Problem(Origin(str(file)), (), reason)]) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem(Origin(str(file)), (), "is not UTF-8")]) from None
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        reason = f"is not TOML: {str(error).partition(' (at')[0]}"
        raise ConfigError([Problem(Origin(str(file), line), (), reason)]) from None
    return data, key_lines(text)


def _merge_file(sources: Sources, file: FilePath) -> None:
    data, lines = read_toml(file)
    proxies = data.pop("proxy", [])
    if not _tables(proxies) or not _tables(sources.data.get("proxy", [])):
        data["proxy"] = proxies  # a wrong type; checked later, where all types are
        proxies = []
    known = sources.data.setdefault("proxy", []) if proxies else []
    places = [_place_of(known, proxy) for proxy in proxies]
    origins: dict[Path, Origin] = {}
    for path, line in lines.items():
        moves = bool(proxies) and path[:1] == ("proxy",) and len(path) > 1
        here = ("proxy", places[int(path[1])], *path[2:]) if moves else path
        origins[here] = Origin(str(file), line)
    _merge(sources, (), sources.data, data, origins)
    for place, proxy in zip(places, proxies, strict=True):
        _merge(sources, ("proxy", place), known[place], proxy, origins)
    for path in [("proxy",), *(("proxy", place) for place in places)]:
        _note(sources, path, origins)


def _merge(
    sources: Sources,
    path: Path,
    base: dict[str, Any],
    over: dict[str, Any],
    origins: dict[Path, Origin],
) -> None:
    """Lay one table over another: tables merge, anything else is replaced."""
    for key, value in over.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(base.get(key, {}), dict):
            _note(sources, here, origins)
            _merge(sources, here, base.setdefault(key, {}), value, origins)
        else:
            base[key] = value
            _replace_origins(sources, here, origins)


def _tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _place_of(proxies: list[dict[str, Any]], wanted: dict[str, Any]) -> int:
    """Find the proxy of the same name, or make room for a new one."""
    for index, proxy in enumerate(proxies):
        if "name" in proxy and proxy["name"] == wanted.get("name"):
            return index
    proxies.append({"name": wanted["name"]} if "name" in wanted else {})
    return len(proxies) - 1


def _note(sources: Sources, path: Path, origins: dict[Path, Origin]) -> None:
    if path in origins:
        sources.origins.setdefault(path, origins[path])


def _replace_origins(sources: Sources, path: Path, origins: dict[Path, Origin]) -> None:
    for old in [old for old in sources.origins if old[: len(path)] == path]:
        del sources.origins[old]
    for new, origin in origins.items():
        if new[: len(path)] == path:
            sources.origins[new] = origin


def _assign(sources: Sources, keys: list[str], text: str, origin: Origin) -> list[Problem]:
    """Set one value from a variable or flag; a list is entered by number or by name."""
    node: Any = sources.data
    path: Path = ()
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            index = _element(node, key)
            if index is None or last:
                return [Problem(origin, (*path, key), "names no element of this list")]
            node, path = node[index], (*path, index)
        elif isinstance(node, dict):
            path = (*path, key)
            if last:
                node[key] = _value_of(text)
                _replace_origins(sources, path, {path: origin})
            else:
                sources.origins.setdefault(path, origin)
                node = node.setdefault(key, {})
        else:
            return [Problem(origin, path, f"is a value, not a section: {key!r} cannot be in it")]
    return []


def _element(items: list[Any], key: str) -> int | None:
    if key.isdigit():
        return int(key) if int(key) < len(items) else None
    for index, item in enumerate(items):
        if isinstance(item, dict) and str(item.get("name", "")).lower() == key.lower():
            return index
    return None


def _value_of(text: str) -> Any:
    """Read a number, a boolean, a list or a quoted string as TOML; anything else is a string."""
    if _SCALAR.fullmatch(text):
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            return text
    return text
