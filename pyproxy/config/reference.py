"""Writes the reference of all settings, ``docs/configuration.md``, from the models.

``make docs`` runs it; a test compares. Not here: the settings. Next on the path: ``model.py``.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

from annotated_types import Ge, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pyproxy.config.model import Settings, reload_class
from pyproxy.config.units import Duration

_HEAD = """\
# Configuration

`pyproxy check -c pyproxy.toml` reads the file, lists everything that is wrong with its line, and
touches nothing; `run` refuses the same with exit code 78. This page is written from the table that
both use (`make docs`).

One file, in TOML. The first of these that has a setting wins: `--set section.key=value` on the
command line; `PYPROXY__SECTION__KEY` in the environment (`PYPROXY__PROXY__0__POOL__MODE`, or the
proxy's name in place of the number); `conf.d/*.toml` beside the file, the later name first (a
`[[proxy]]` there merges with the one of the same name, other lists are replaced); the file; the
default. Times are written `"250ms"`, `"30s"`, `"5m"`, `"24h"`. Relative paths are relative to the
file. `pyproxy config show --origin` lists what counts and where it was written.

`pyproxy reload` (or SIGHUP) takes a changed file over as a whole, or refuses it as a whole and says
why. Most settings count at once; those marked *New servers* count for server connections made from
then on; a change of one marked *Restart* is refused.

A secret file (mode 0600, or it is refused) has a table a user:

```toml
[app]
verifier = "SCRAM-SHA-256$4096:…"   # from `pyproxy hash`; md5 = "…" from `pyproxy hash --md5 app`
server_password = "…"               # where the database asks for one
server_user = "app_rw"              # where the database's user has another name
```

`password = "…"` alone does for both sides: clients are checked against a verifier that is made from
it at start, and it is the database's password unless `server_password` says otherwise. With
`scheme = "trust"` the secret is optional and only its server side counts.
"""


_RELOAD = {"live": "", "recycle": " *New servers.*", "restart": " *Restart.*"}


def reference() -> str:
    """Return the page as Markdown, ending in a newline."""
    return "\n".join([_HEAD, *_section(Settings, "")]).rstrip() + "\n"


def _section(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Write a table of the plain settings of one section, then its sub-sections."""
    plain = {name: info for name, info in model.model_fields.items() if not _inner(info)}
    if plain:
        yield from _table(plain)
        yield ""
    for name, info in model.model_fields.items():
        found = _inner(info)
        if found:
            inner, many = found
            path = f"{prefix}{name}"
            yield f"## `[[{path}]]`" if many else f"## `[{path}]`"
            yield ""
            yield (inner.__doc__ or "").strip()
            yield ""
            yield from _section(inner, f"{path}.")


def _table(fields: dict[str, FieldInfo]) -> Iterator[str]:
    yield "| setting | type | default | what it does |"
    yield "| --- | --- | --- | --- |"
    for name, info in fields.items():
        extra = info.json_schema_extra
        later = str(extra.get("later", "")) if isinstance(extra, dict) else ""
        doc = str(info.description) + (f" *No effect before {later}.*" if later else "")
        doc += _RELOAD[reload_class(info)]
        yield f"| `{name}` | {_label(info)} | {_default(info)} | {doc} |"


def _inner(info: FieldInfo) -> tuple[type[BaseModel], bool] | None:
    """Return the model of a field that is a table, and whether there may be many."""
    many = typing.get_origin(info.annotation) is list
    for each in (info.annotation, *typing.get_args(info.annotation)):
        if inspect.isclass(each) and issubclass(each, BaseModel):
            return each, many
    return None


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "*required*"
    value = info.default
    if value is None:
        return "*unset*"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return "`[" + ", ".join(f'"{each}"' for each in value) + "]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _label(info: FieldInfo) -> str:
    for each in info.metadata:
        if isinstance(each, Duration):
            return each.label()
    return _type_label(info.annotation, info.metadata)


def _type_label(annotation: Any, metadata: Any = ()) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_label(each) for each in arguments if each is not type(None))
    if origin is list:
        return f"list of {_type_label(arguments[0])}"
    if origin is typing.Annotated:
        return _type_label(arguments[0], [*arguments[1:], *_limits(arguments[1:])])
    if annotation in (int, float):
        least = next(
            (each.ge for each in [*metadata, *_limits(metadata)] if isinstance(each, Ge)), ""
        )
        most = next(
            (each.le for each in [*metadata, *_limits(metadata)] if isinstance(each, Le)), ""
        )
        return f"{least} – {most}"
    return {str: "text", bool: "boolean"}.get(annotation, str(annotation))


def _limits(metadata: Any) -> list[Any]:
    """Unfold pydantic's own ``Field(...)`` among the annotations of a type."""
    return [inner for each in metadata if isinstance(each, FieldInfo) for inner in each.metadata]


if __name__ == "__main__":
    sys.stdout.write(reference())
