"""Secret files: who may log in with what, and how the database is entered for them.

A secret file has a table a user: ``password``, ``verifier`` or ``md5``, and ``server_password`` and
``server_user`` where the database's login differs. Values never reach a message. Not here: the
hashing itself (``rust/auth``). Next on the path: ``compile.py``.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from pyproxy.config.model import Auth, Settings
from pyproxy.config.problems import ConfigError, Origin, Path, Problem, nearest
from pyproxy.config.sources import Sources, read_toml

_KEYS = ("password", "verifier", "md5", "server_password", "server_user")
_VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d{1,9}):([^$:]+)\$([^$:]+):([^$:]+)")
_MD5 = re.compile(r"(?:md5)?([0-9a-f]{32})")
_SHA256_BYTES = 32
_ITERATIONS_MAX = 100_000  # rust/core/src/limits.rs: SCRAM_ITERATIONS_MAX


@dataclass(frozen=True, slots=True)
class Login:
    """One user: the proofs on file, and the database's login. Its repr shows no secret."""

    auth: Auth
    password: str | None = field(default=None, repr=False)
    verifier: str | None = field(default=None, repr=False)
    md5: str | None = field(default=None, repr=False)
    server_user: str | None = None
    server_password: str | None = field(default=None, repr=False)


def verifier_flaw(text: str) -> str:
    """Say what is wrong with a SCRAM-SHA-256 verifier, or return an empty string.

    The form is PostgreSQL's: ``SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>``.
    """
    match = _VERIFIER.fullmatch(text)
    if match is None:
        return "is not SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>"
    if not 1 <= int(match[1]) <= _ITERATIONS_MAX:
        return f"has an iteration count outside 1 to {_ITERATIONS_MAX}"
    try:
        parts = [base64.b64decode(part, validate=True) for part in match.groups()[1:]]
    except binascii.Error:
        return "has a part that is not base64"
    if any(len(key) != _SHA256_BYTES for key in parts[1:]):
        return f"has a key that is not {_SHA256_BYTES} bytes long"
    return ""


def read_logins(
    settings: Settings, sources: Sources, environment: Mapping[str, str]
) -> tuple[list[Login], list[Problem]]:
    """Read the credential of each ``[[proxy.auth]]``; return the logins and all problems.

    A secret file is read once, however many users it serves.
    """
    reader = _Reader(sources, environment)
    logins: list[Login] = []
    for number, proxy in enumerate(settings.proxy):
        for index, auth in enumerate(proxy.auth):
            path = ("proxy", number, "auth", index)
            if auth.scheme in ("file", "trust") and auth.user != "*":
                login = reader.login(auth, path)
                if login is not None:
                    logins.append(login)
    return logins, reader.problems


class _Reader:
    """Reads secrets and collects what is wrong with them."""

    def __init__(self, sources: Sources, environment: Mapping[str, str]) -> None:
        self.sources = sources
        self.environment = environment
        self.problems: list[Problem] = []
        self.files: dict[FilePath, tuple[dict[str, Any], dict[Path, int]] | None] = {}

    def login(self, auth: Auth, path: Path) -> Login | None:
        here = (*path, "secret")
        kind, colon, rest = auth.secret.partition(":")
        if not auth.secret:
            return Login(auth)  # right for trust; rules.py complains for the others
        if not colon or kind not in ("file", "env") or not rest:
            self.complain(here, "not available yet: only file:PATH and env:NAME")
            return None
        if kind == "env":
            return self.from_environment(auth, here, rest)
        file = self.sources.file.parent / FilePath(rest).expanduser()
        if file not in self.files:
            self.files[file] = self.read(file, here)
        return self.from_file(auth, here, file)

    def from_environment(self, auth: Auth, here: Path, name: str) -> Login | None:
        value = self.environment.get(name, "")
        if not value or not value.isprintable():
            self.complain(here, f"environment variable {name} is not set, or not one line of text")
            return None
        if not value.startswith("SCRAM-SHA-256$"):
            return Login(auth, password=value)
        if flaw := verifier_flaw(value):
            self.complain(here, f"environment variable {name} {flaw}")
            return None
        return Login(auth, verifier=value)

    def read(self, file: FilePath, here: Path) -> tuple[dict[str, Any], dict[Path, int]] | None:
        try:
            mode = file.stat().st_mode
            if mode & 0o077:
                shown = f"{mode & 0o777:04o}"
                self.complain(here, f"{file} is readable by others (mode {shown}); chmod 600 it")
            return read_toml(file)
        except OSError as error:
            self.complain(here, f"{file} cannot be read: {error.strerror or error}")
        except ConfigError as error:
            self.problems.extend(error.problems)
        return None

    def from_file(self, auth: Auth, here: Path, file: FilePath) -> Login | None:
        found = self.files[file]
        if found is None:
            return None
        data, lines = found
        table = data.get(auth.user)
        if not isinstance(table, dict):
            if auth.scheme == "trust":
                return Login(auth)
            self.complain(here, f"{file} has no table [{auth.user}]{nearest(auth.user, data)}")
            return None
        flaws = list(_table_flaws(table, auth))
        for key, text in flaws:
            line = lines.get((auth.user, key), lines.get((auth.user,), 0))
            self.problems.append(Problem(Origin(str(file), line), (auth.user, key), text))
        if flaws:
            return None
        md5 = _MD5.fullmatch(table.get("md5", ""))
        return Login(
            auth,
            password=table.get("password"),
            verifier=table.get("verifier"),
            md5=md5[1] if md5 else None,
            server_user=table.get("server_user"),
            server_password=table.get("server_password"),
        )

    def complain(self, path: Path, text: str) -> None:
        self.problems.append(Problem(self.sources.origin(path), path, text))


def _table_flaws(table: dict[str, Any], auth: Auth) -> Iterator[tuple[str, str]]:
    """Find what is wrong in one user's table: (key, sentence) pairs that carry no secret."""
    sound = True
    for key, value in table.items():
        if key not in _KEYS:
            yield key, f"unknown key {key!r}{nearest(key, _KEYS)}"
        elif not isinstance(value, str) or not value or "\0" in value:
            sound = False
            yield key, "must be a string that is not empty, without NUL"
    if not sound:
        return
    if "verifier" in table and (flaw := verifier_flaw(table["verifier"])):
        yield "verifier", flaw
    if "md5" in table and _MD5.fullmatch(table["md5"]) is None:
        yield "md5", "is not 32 hexadecimal digits (pyproxy hash --md5 USER makes them)"
    needed = "md5" if auth.client_auth == "md5" else "verifier"
    if auth.scheme == "file" and "password" not in table and needed not in table:
        yield "password", f"is missing: client_auth {auth.client_auth} needs password or {needed}"
