"""From checked settings to the plain data that the core takes (``rust/core/src/config.rs``).

Times become milliseconds, passwords become verifiers, limits become numbers. What changes while the
service runs (addresses, paused databases) is added by ``../supervisor/epochs.py``. Next on the
path: ``compiled.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from pyproxy import _core
from pyproxy.config.compiled import Compiled, Fixed, Service, TargetAddress
from pyproxy.config.listen import parse_listen
from pyproxy.config.load import Loaded
from pyproxy.config.model import Pool, Target, reload_class
from pyproxy.config.problems import ConfigError, Origin, Path, Problem, show_path
from pyproxy.config.secrets import Login
from pyproxy.config.units import Duration, format_duration
from pyproxy.limits import WORKERS_MAX
from pyproxy.saslprep import saslprep

VERIFIER_ITERATIONS = 4096
"""PostgreSQL's own default (``scram_iterations``)."""
VERIFIER_SALT_BYTES = 16


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
    return Compiled(
        name=proxy.name,
        listeners=listeners,
        targets=targets,
        core=core,
        service=_service(loaded),
        fixed=dict(_fixed(loaded, loaded.settings, ())),
        remarks=loaded.remarks,
    )


def _service(loaded: Loaded) -> Service:
    own = loaded.settings.supervisor
    workers = own.workers if own.workers != "auto" else len(os.sched_getaffinity(0))
    return Service(
        file=str(loaded.file),
        workers=min(workers, WORKERS_MAX),
        runtime_dir=os.path.abspath(loaded.file.parent / own.runtime_dir),  # noqa: PTH100
        user=own.user,
        shutdown_timeout_ms=own.shutdown_timeout,
        orphan_timeout_ms=own.orphan_timeout,
        io=own.io,
        log_format=loaded.settings.log.format,
        log_level=loaded.settings.log.level,
    )


def _fixed(loaded: Loaded, section: BaseModel, path: Path) -> Iterator[tuple[str, Fixed]]:
    """Find the settings of the service that only a restart changes."""
    for name, info in type(section).model_fields.items():
        here, value = (*path, name), getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _fixed(loaded, value, here)
        elif reload_class(info) == "restart":
            is_time = any(isinstance(each, Duration) for each in info.metadata)
            text = format_duration(value) if is_time else str(value)
            yield show_path(here), Fixed(text, str(loaded.sources.origin(here)))


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
