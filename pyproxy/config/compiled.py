"""A compiled configuration: plain data, and its way from the child that reads it to the supervisor.

Imports no pydantic, so that the supervisor and the workers forked from it stay small. Not here: how
it is made (``compile.py``). Next on the path: ``../supervisor/epochs.py``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from pyproxy.config.listen import ListenAddress, is_ip_address, parse_listen

Address = dict[str, str]
"""What the core connects to: ``{"tcp": "ip:port"}`` or ``{"unix": path}``."""


class TargetAddress(NamedTuple):
    """A database server as configured; ``host`` may be a name, an address or a socket directory."""

    host: str
    port: int

    def __str__(self) -> str:
        """Write it as a person knows it: ``db1.internal:5432``."""
        if self.host.startswith("/"):
            return self.unix_path()
        return show_endpoint(self.host, self.port)

    def unix_path(self) -> str:
        """Return the socket's file in a PostgreSQL socket directory."""
        return f"{self.host.rstrip('/')}/.s.PGSQL.{self.port}"

    def literal(self) -> Address | None:
        """Return the address that needs no resolver, or None for a name."""
        if self.host.startswith("/"):
            return {"unix": self.unix_path()}
        return {"tcp": str(self)} if is_ip_address(self.host) else None


def show_endpoint(host: str, port: int) -> str:
    """Write host and port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True)
class Service:
    """What the supervisor itself needs; times in milliseconds, paths absolute."""

    file: str
    workers: int
    runtime_dir: str
    user: str
    shutdown_timeout_ms: int
    orphan_timeout_ms: int
    io: str
    log_format: str
    log_level: str


@dataclass(frozen=True)
class Fixed:
    """A setting that only a restart changes: its value, and where it was written."""

    value: str
    origin: str


@dataclass(frozen=True)
class Compiled:
    """Everything that one proxy needs to be served; holds secrets, and its repr shows none."""

    name: str
    listeners: tuple[ListenAddress, ...]
    targets: tuple[TargetAddress, ...]
    core: dict[str, Any] = field(repr=False)
    service: Service
    fixed: dict[str, Fixed]
    remarks: tuple[str, ...] = ()

    @property
    def connections_max(self) -> int | None:
        """The absolute budget, or None where it is a share of the target's."""
        found: int | None = self.core["limit"].get("connections")
        return found

    @property
    def connections_percent(self) -> int | None:
        """The budget as percent of the target's, or None where it is absolute."""
        found: int | None = self.core["limit"].get("percent")
        return found

    def to_json(self) -> str:
        """Write it for ``from_json``; the text holds secrets."""
        return json.dumps(
            {
                "name": self.name,
                "listeners": [str(address) for address in self.listeners],
                "targets": self.targets,
                "core": self.core,
                "service": asdict(self.service),
                "fixed": {path: asdict(each) for path, each in self.fixed.items()},
                "remarks": self.remarks,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Compiled:
        """Read what ``to_json`` wrote."""
        data = json.loads(text)
        return cls(
            name=data["name"],
            listeners=tuple(parse_listen(each, FilePath("/")) for each in data["listeners"]),
            targets=tuple(TargetAddress(host, port) for host, port in data["targets"]),
            core=data["core"],
            service=Service(**data["service"]),
            fixed={path: Fixed(**each) for path, each in data["fixed"].items()},
            remarks=tuple(data["remarks"]),
        )

    def restart_needed(self, other: Compiled) -> list[str]:
        """Return a line for each setting of ``other`` that a running service cannot take over."""
        return [
            f"{new.origin}: {path}: only a restart changes it (now {old.value}, here {new.value})"
            for path, new in other.fixed.items()
            if (old := self.fixed[path]).value != new.value
        ]
