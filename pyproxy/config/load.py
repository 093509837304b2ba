"""From a configuration file to checked settings, or to the list of everything that is wrong.

The way in for ``check`` and ``run``. Not here: single rules. Next on the path: ``model.py``, then
``rules.py``, then ``compile.py``.
"""

from __future__ import annotations

import copy
import inspect
import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pyproxy.config.model import Settings
from pyproxy.config.problems import ConfigError, Path, Problem, nearest
from pyproxy.config.rules import check_rules
from pyproxy.config.secrets import Login, read_logins
from pyproxy.config.sources import Sources, read_sources

_WORDS = {
    "missing": "is required",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be a string in quotes",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "model_type": "must be a table",
    "dict_type": "must be a table",
}
_PLACEHOLDER = "unknown"


@dataclass(frozen=True)
class Loaded:
    """A configuration without problems: settings, who may log in, and remarks for the operator."""

    file: FilePath
    settings: Settings
    logins: tuple[Login, ...]
    remarks: tuple[str, ...]
    sources: Sources


def load(
    file: str | os.PathLike[str],
    flags: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Loaded:
    """Read, merge and check a configuration, secrets included.

    ``flags`` are ``section.key=value`` and win; ``environment`` is the process's own unless given.
    Raises ``ConfigError`` with every problem that can be found at once; makes no connection and
    binds nothing.
    """
    environment = os.environ if environment is None else environment
    sources = read_sources(FilePath(file), environment, flags)
    settings, problems, pruned = _validate(sources)
    if settings is None:
        raise ConfigError(problems)
    found, remarks = check_rules(settings, sources)
    logins, wrong = read_logins(settings, sources, environment)
    for problem in (*found, *wrong):
        if not any(_touches(problem.path, path) for path in pruned):
            problems.append(problem)
    if problems:
        raise ConfigError(problems)
    return Loaded(sources.file, settings, tuple(logins), tuple(remarks), sources)


def _validate(sources: Sources) -> tuple[Settings | None, list[Problem], list[Path]]:
    """Check types and ranges; what is wrong is cut out so that the rules still see the rest.

    Returns the settings (without the flawed parts), the problems and the paths that were cut out.
    """
    data = copy.deepcopy(sources.data)
    problems: list[Problem] = []
    pruned: list[Path] = []
    while True:
        try:
            return Settings.model_validate(data), problems, pruned
        except ValidationError as error:
            details = error.errors()
        places = {_real_path(detail["loc"], data) for detail in details}
        if not pruned:
            problems = _problems(details, sources)
        fresh = [_prune(data, path) for path in places]
        pruned.extend(path for path in fresh if path)
        if not any(fresh):
            return None, problems, pruned


def _problems(details: list[ErrorDetails], sources: Sources) -> list[Problem]:
    grouped: dict[Path, list[ErrorDetails]] = {}
    for detail in details:
        grouped.setdefault(_real_path(detail["loc"], sources.data), []).append(detail)
    return [
        Problem(sources.origin(path), path, " or ".join(dict.fromkeys(map(_message, group))))
        for path, group in grouped.items()
    ]


def _message(detail: ErrorDetails) -> str:
    """Say one of pydantic's findings in the operator's words; never repeats a value."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        path = tuple(detail["loc"])
        return f"unknown key {path[-1]!r}{nearest(str(path[-1]), _known_keys(path[:-1]))}"
    if kind == "literal_error":
        word = detail["input"] if isinstance(detail["input"], str) else ""
        known = [part.strip(" '") for part in context["expected"].replace(" or ", ", ").split(",")]
        return f"must be {context['expected']}" + nearest(word, known, show_all=False)
    if kind in {"greater_than_equal", "less_than_equal"}:
        bound = context.get("ge", context.get("le"))
        return f"must be at {'least' if 'ge' in context else 'most'} {bound}"
    return _WORDS.get(kind) or detail["msg"][:1].lower() + detail["msg"][1:]


def _real_path(loc: tuple[int | str, ...], data: Any) -> Path:
    """Keep the file's keys of a place; pydantic adds the tried member of a union."""
    path: Path = ()
    for index, part in enumerate(loc):
        if part in (data if isinstance(data, dict) else range(_length(data))):
            data = data[part]
        elif isinstance(data, dict) and index == len(loc) - 1:
            return (*path, part)  # a required key that is not there
        else:
            return path
        path = (*path, part)
    return path


def _length(data: Any) -> int:
    return len(data) if isinstance(data, list) else 0


def _prune(data: dict[str, Any], path: Path) -> Path:
    """Make a flawed place harmless without moving any other place.

    A wrong value goes, so that its default stands in; a list with a wrong element goes whole; a
    required key that is missing gets a placeholder. Returns the part that nothing more may be said
    about.
    """
    while path and isinstance(path[-1], int):
        path = path[:-1]
    node: Any = data
    for part in path[:-1]:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return ()
    if not path or not isinstance(node, dict):
        return ()
    if path[-1] in node:
        del node[path[-1]]
        return path
    node[path[-1]] = _PLACEHOLDER
    return path if path[-1] == "name" else path[:-1]


def _touches(one: Path, other: Path) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _known_keys(path: Path) -> list[str]:
    model: type[BaseModel] = Settings
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the table that a field holds, through lists, unions and annotations."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    for inner in typing.get_args(annotation):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
