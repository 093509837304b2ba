"""Listen addresses: their notation, and which of them are loopback, private or overlapping.

Not here: binding (``supervisor/listeners.py``). Next on the path: ``rules.py``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path as FilePath

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_NO_IP = ipaddress.IPv4Address(0)  # what a Unix socket has
_HOST_PORT = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]+)):(\d{1,5})")
_PATH_BYTES_MAX = 107  # sun_path holds 108 bytes, the last one 0


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """One address to bind: a Unix socket's path, or an IP address with a port (1–65535)."""

    unix: str = ""
    ip: IpAddress = _NO_IP
    port: int = 0

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect to it."""
        return bool(self.unix) or self.ip.is_loopback

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every address of the machine."""
        return not self.unix and self.ip.is_unspecified

    @property
    def is_private(self) -> bool:
        """Whether the internet cannot route to it; a wildcard address is not private."""
        return self.is_local or (self.ip.is_private and not self.is_wildcard)

    def overlaps(self, other: ListenAddress) -> bool:
        """Return whether the two cannot be bound at the same time (IPv6 sockets take IPv6 only)."""
        if self.unix or other.unix:
            return self.unix == other.unix
        if self.port != other.port or self.ip.version != other.ip.version:
            return False
        return self.ip == other.ip or self.is_wildcard or other.is_wildcard

    def __str__(self) -> str:
        """Write the address as the configuration does."""
        if self.unix:
            return f"unix:{self.unix}"
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


def is_ip_address(text: str) -> bool:
    """Return whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def parse_listen(text: str, base: FilePath) -> ListenAddress:
    """Read one listen address; a relative socket path is relative to ``base``.

    Raises ``ValueError`` (the operator's fault) with a sentence that shows the right form.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path:
            raise ValueError("names no socket file; write unix:/path")
        full = str(base / path)
        if len(full.encode()) > _PATH_BYTES_MAX:
            raise ValueError(f"the socket's path is longer than {_PATH_BYTES_MAX} bytes")
        return ListenAddress(unix=full)
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an address; write ip:port, [ip6]:port or unix:/path")
    host, port = match[1] or match[2], int(match[3])
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} is out of range: 1 to 65535")
    if host == "localhost":
        host = "127.0.0.1"
    elif host == "*":
        host = "0.0.0.0"  # noqa: S104 - the operator said so; rules.py decides
    try:
        return ListenAddress(ip=ipaddress.ip_address(host), port=port)
    except ValueError:
        raise ValueError(f"{host!r} is not an IP address; names are not resolved here") from None
