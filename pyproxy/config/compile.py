"""From checked settings to the plain data that the core takes (``rust/core/src/config.rs``).

Times become milliseconds, passwords become verifiers, limits become numbers. What only a worker
knows (its number, the targets' addresses) is added by ``Compiled.for_worker``. Next on the path:
``../supervisor/run.py``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pyproxy import _core
from pyproxy.config.listen import ListenAddress, parse_listen
from pyproxy.config.load import Loaded
from pyproxy.config.model import Pool, Target
from pyproxy.config.problems import ConfigError, Origin, Problem
from pyproxy.config.secrets import Login
from pyproxy.saslprep import saslprep

VERIFIER_ITERATIONS = 4096
"""PostgreSQL's own default (``scram_iterations``)."""
VERIFIER_SALT_BYTES = 16


class TargetAddress(NamedTuple):
    """A database server as configured; ``host`` may be a name, an address or a socket directory."""

    host: str
    port: int

    def __str__(self) -> str:
        """Write it as a person knows it: ``db1.internal:5432``."""
        if self.host.startswith("/"):
            return self.unix_path()
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def unix_path(self) -> str:
        """Return the socket's file in a PostgreSQL socket directory."""
        return f"{self.host.rstrip('/')}/.s.PGSQL.{self.port}"


@dataclass(frozen=True)
class Compiled:
    """What a worker needs to serve one proxy; holds secrets, so its repr shows none of them."""

    name: str
    listeners: tuple[ListenAddress, ...]
    targets: tuple[TargetAddress, ...]
    core: dict[str, Any] = field(repr=False)

    def for_worker(self, worker: int, generation: int, addresses: Sequence[dict[str, str]]) -> str:
        """Write the JSON for ``_core.Engine``.

        ``worker`` is the worker's number (0–65535), ``generation`` how often that number was
        started, ``addresses`` the resolved targets, by preference: ``{"tcp": "ip:port"}`` or
        ``{"unix": path}``.
        """
        own = {"worker": worker, "worker_generation": generation, "targets": list(addresses)}
        return json.dumps({**self.core, **own})

    def server_password(self, credential: int) -> str | None:
        """Return the server password of ``Config::credentials[credential]``, if it is known."""
        credentials = self.core["credentials"]
        if not 0 <= credential < len(credentials):
            return None
        password: str | None = credentials[credential]["server_password"]
        return password


def compile_config(loaded: Loaded, random_bytes: Callable[[int], bytes] = os.urandom) -> Compiled:
    """Compile the one proxy of a checked configuration.

    ``random_bytes`` gives the salts of verifiers made from plain passwords. Raises ``ConfigError``
    for a verifier that the core does not take.
    """
    proxy = loaded.settings.proxy[0]
    base = loaded.file.parent
    targets = tuple(_target(target) for target in proxy.target)
    core = {
        "name": proxy.name,
        "allow": list(proxy.allow),
        "client_connections_max": proxy.max_clients,
        "credentials": [_credential(login, loaded, random_bytes) for login in loaded.logins],
        "target_name": ",".join(str(target) for target in targets),
        "login_timeout_ms": proxy.login_timeout,
        "idle_client_timeout_ms": proxy.idle_client_timeout,
        **_pool(proxy.pool),
    }
    listeners = tuple(
        parse_listen(text, base) for endpoint in proxy.endpoint for text in endpoint.listen
    )
    return Compiled(proxy.name, listeners, targets, core)


def _target(target: Target) -> TargetAddress:
    return TargetAddress(target.host, target.port)


def _pool(pool: Pool) -> dict[str, Any]:
    limit: dict[str, int]
    if pool.max_connections is not None:
        limit, whole = {"connections": pool.max_connections}, 100
    else:
        limit, whole = {"percent": pool.max_connections_percent}, pool.max_connections_percent
    idle = pool.max_idle_connections_percent
    return {
        "mode": pool.mode,
        "limit": limit,
        "min_connections": pool.min_connections,
        # The core counts idle servers against the budget, the operator against the whole target.
        "max_idle_percent": 50 if idle is None else idle * 100 // whole,
        "borrow_timeout_ms": pool.connection_borrow_timeout,
        "idle_timeout_ms": pool.idle_timeout,
        "max_lifetime_ms": pool.max_lifetime,
        "check_delay_ms": pool.check_delay,
        "idle_transaction_timeout_ms": pool.idle_transaction_timeout,
        "query_timeout_ms": pool.query_timeout,
        "query_wait_notify_ms": pool.query_wait_notify,
        "connect_timeout_ms": pool.connect_timeout,
        "init_query": pool.init_query,
        "prepared_statements_max": pool.max_prepared_statements,
    }


def _credential(
    login: Login, loaded: Loaded, random_bytes: Callable[[int], bytes]
) -> dict[str, Any]:
    auth = login.auth
    return {
        "user": auth.user,
        "client_auth": _client_auth(login, loaded, random_bytes),
        "databases": [] if "*" in auth.databases else list(auth.databases),
        "server_user": login.server_user or auth.user,
        "server_password": login.server_password or login.password,
    }


def _client_auth(
    login: Login, loaded: Loaded, random_bytes: Callable[[int], bytes]
) -> dict[str, bool | str]:
    auth = login.auth
    if auth.scheme == "trust":
        return {"trust": True}
    if auth.client_auth == "md5":
        if login.md5 is not None:
            return {"md5": login.md5}
        return {"md5": _core.md5_inner((login.password or "").encode(), auth.user.encode())}
    if login.verifier is None:
        return {"scram": make_verifier(login.password or "", random_bytes)}
    try:
        _core.check_verifier(login.verifier)
    except ValueError as error:
        text = f"the verifier of user {auth.user!r} is not usable: {error}"
        raise ConfigError([Problem(Origin(str(loaded.file)), (), text)]) from None
    return {"scram": login.verifier}


def make_verifier(password: str, random_bytes: Callable[[int], bytes] = os.urandom) -> str:
    """Make a SCRAM-SHA-256 verifier with a fresh salt, as PostgreSQL would store it (RFC 5803)."""
    salt = random_bytes(VERIFIER_SALT_BYTES)
    return _core.make_verifier(saslprep(password), salt, VERIFIER_ITERATIONS)
