"""Load goes to this machine only: what libpq's environment names is checked before the first byte.

Pure. Next on the path: `locustfile.py`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

ELSEWHERE = ("PGHOSTADDR", "PGSERVICE")
"""Variables by which libpq would go elsewhere, whatever `PGHOST` says."""


def check_loopback(environment: Mapping[str, str]) -> None:
    """Accept one address of this machine, or one Unix socket's folder, in `PGHOST`.

    Raises `SystemExit` with a line that says what to set.
    """
    host = environment.get("PGHOST", "")
    if not _is_near(host):
        raise SystemExit(
            f"loadtests: PGHOST is {host!r}: load only this machine, by its address (127.0.0.1)"
        )
    for name in ELSEWHERE:
        if environment.get(name):
            raise SystemExit(f"loadtests: {name} is set: load only this machine, by PGHOST")


def _is_near(host: str) -> bool:
    if host.startswith("/"):
        return "," not in host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
