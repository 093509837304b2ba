"""Rules that span several settings, and settings that are known but not available yet.

Each rule is a generator over the settings that yields what is wrong; ``check_rules`` runs them all,
so that every problem is told at once. Not here: single values (``model.py``), secrets
(``secrets.py``). Next on the path: ``secrets.py``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from pyproxy.config.listen import ListenAddress, parse_listen
from pyproxy.config.model import Pool, Proxy, Settings, Target
from pyproxy.config.problems import Path, Problem, show_path
from pyproxy.config.sources import Sources
from pyproxy.limits import LISTENERS_MAX

Finding = tuple[Path, str]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def check_rules(settings: Settings, sources: Sources) -> tuple[list[Problem], list[str]]:
    """Check everything that one setting alone cannot show.

    Returns the problems, and remarks on settings that are accepted but have no effect yet.
    """
    findings = [*_global(settings), *_listeners(settings, sources)]
    for index, proxy in enumerate(settings.proxy):
        at: Path = ("proxy", index)
        for rule in (_not_available, _network, _users, _targets):
            findings += rule(proxy, at)
        findings += _pool(proxy.pool, (*at, "pool"))
    problems = [Problem(sources.origin(path), path, text) for path, text in findings]
    return problems, list(_remarks(settings, (), sources))


def _global(settings: Settings) -> Iterator[Finding]:
    if not settings.proxy:
        yield ("proxy",), "there is none; add a [[proxy]]"
    if len(settings.proxy) > 1:
        yield ("proxy", 1), "not available yet: a second [[proxy]]; run one service for each"
    listening = sum(len(each.listen) for proxy in settings.proxy for each in proxy.endpoint)
    if listening > LISTENERS_MAX:
        yield ("proxy",), f"{listening} listen addresses; a service has at most {LISTENERS_MAX}"


def _not_available(proxy: Proxy, at: Path) -> Iterator[Finding]:
    pool = proxy.pool
    yield from _later(proxy.engine != "postgresql", (*at, "engine"), proxy.engine)
    yield from _later(proxy.require_tls, (*at, "require_tls"), "TLS towards clients")
    yield from _later(proxy.tls is not None, (*at, "tls"), "TLS towards clients")
    yield from _later(proxy.client_lifetime > 0, (*at, "client_lifetime"), "a client's lifetime")
    yield from _later(pool.mode == "statement", (*at, "pool", "mode"), "statement mode")
    yield from _later(pool.routines != "trust", (*at, "pool", "routines"), f"{pool.routines!r}")
    for index, endpoint in enumerate(proxy.endpoint):
        here = (*at, "endpoint", index, "role")
        yield from _later(endpoint.role == "read_only", here, "read_only endpoints")
    for index, auth in enumerate(proxy.auth):
        here = (*at, "auth", index)
        scheme_later = auth.scheme not in ("file", "trust")
        yield from _later(scheme_later, (*here, "scheme"), f"scheme {auth.scheme!r}")
        yield from _later(auth.iam != "disabled", (*here, "iam"), "IAM tokens")
        auth_later = auth.client_auth not in ("scram-sha-256", "md5")
        yield from _later(auth_later, (*here, "client_auth"), f"{auth.client_auth!r}")
        if auth.user == "*" and not scheme_later:
            yield (*here, "user"), '"*" needs scheme auth_query or passthrough'


def _later(wanted: bool, path: Path, what: str) -> Iterator[Finding]:
    if wanted:
        yield path, f"not available yet: {what}"


def _listeners(settings: Settings, sources: Sources) -> Iterator[Finding]:
    """Find listen addresses that cannot be read, overlap, or face the public without consent."""
    seen: list[tuple[ListenAddress, Path]] = []
    try:
        seen.append((parse_listen(settings.admin.http, sources.file.parent), ("admin", "http")))
    except ValueError as error:
        yield ("admin", "http"), str(error)
    for number, proxy in enumerate(settings.proxy):
        for place, endpoint in enumerate(proxy.endpoint):
            for index, text in enumerate(endpoint.listen):
                path = ("proxy", number, "endpoint", place, "listen", index)
                try:
                    address = parse_listen(text, sources.file.parent)
                except ValueError as error:
                    yield path, str(error)
                    continue
                for other, other_path in seen:
                    if address.overlaps(other):
                        at = sources.origin(other_path)
                        yield path, f"{text} overlaps {show_path(other_path)} ({at})"
                seen.append((address, path))
                yield from _exposure(proxy, address, path)


def _exposure(proxy: Proxy, address: ListenAddress, path: Path) -> Iterator[Finding]:
    trusted = [auth.user for auth in proxy.auth if auth.scheme == "trust"]
    if trusted and not address.is_local:
        user = trusted[0]
        yield path, f"{address} is not loopback, but {user!r} needs no proof (scheme trust)"
    networks = [network for text in proxy.allow if (network := _network_of(text)) is not None]
    closed = address.is_wildcard and all(network.is_private for network in networks)
    if address.is_private or closed or (proxy.allow_public and proxy.require_tls):
        return
    if address.is_wildcard:
        reason = "takes every address while allow names a public network"
    else:
        reason = "is a public address"
    yield path, f"{address} {reason}: that needs allow_public = true and require_tls = true"


def _network_of(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def _network(proxy: Proxy, at: Path) -> Iterator[Finding]:
    for index, text in enumerate(proxy.allow):
        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            yield (*at, "allow", index), f"is not a network in CIDR form: {error}"


def _users(proxy: Proxy, at: Path) -> Iterator[Finding]:
    if not proxy.auth:
        yield (*at, "auth"), "there is none; add a [[proxy.auth]], or nobody can log in"
    first: dict[str, int] = {}
    for index, auth in enumerate(proxy.auth):
        here = (*at, "auth", index)
        if first.setdefault(auth.user, index) != index:
            yield (*here, "user"), f"{auth.user!r} is already in {show_path((*at, 'auth'))}"
        if auth.scheme == "file" and not auth.secret:
            yield (*here, "secret"), "scheme file needs one; write file:PATH or env:NAME"
        if not auth.databases:
            yield (*here, "databases"), 'is empty, so nothing can be opened; write ["*"] for all'


def _pool(pool: Pool, at: Path) -> Iterator[Finding]:
    most = pool.max_connections
    explicit = "max_connections_percent" in pool.model_fields_set
    if most is not None and explicit:
        yield (*at, "max_connections_percent"), "give this or max_connections, not both"
    if most is not None and pool.min_connections > most:
        yield (
            (*at, "min_connections"),
            f"{pool.min_connections} is above max_connections = {most}",
        )
    limit = 100 if most is not None else pool.max_connections_percent
    idle = pool.max_idle_connections_percent
    if idle is not None and idle > limit:
        yield (
            (*at, "max_idle_connections_percent"),
            f"{idle} is above max_connections_percent = {limit}",
        )


def _targets(proxy: Proxy, at: Path) -> Iterator[Finding]:
    if not proxy.target:
        yield (*at, "target"), "there is none; add a [[proxy.target]] with a host"
    first: dict[tuple[str, int], int] = {}
    for index, target in enumerate(proxy.target):
        here = (*at, "target", index)
        if first.setdefault((target.host, target.port), index) != index:
            yield (*here, "host"), f"{target.host}:{target.port} is already in the list"
        if target.tls is None and not is_local_target(target):
            text = "not available yet: tls = verify-full, the default off loopback;"
            yield (*here, "host"), f'{text} on a network that you trust, write tls = "disable"'
        elif target.tls not in (None, "disable"):
            yield (*here, "tls"), f"not available yet: {target.tls!r}"


def is_local_target(target: Target) -> bool:
    """Return whether the way to a target stays inside this machine."""
    if target.host.startswith("/") or target.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(target.host).is_loopback
    except ValueError:
        return False


def _remarks(section: BaseModel, path: Path, sources: Sources) -> Iterator[str]:
    """Tell of settings that were written and will only have an effect later."""
    for name, info in type(section).model_fields.items():
        value: Any = getattr(section, name)
        here = (*path, name)
        extra = info.json_schema_extra
        if isinstance(value, BaseModel):
            yield from _remarks(value, here, sources)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            for index, item in enumerate(value):
                yield from _remarks(item, (*here, index), sources)
        elif isinstance(extra, dict) and "later" in extra and sources.written(here):
            what = f"{show_path(here)}: has no effect before {extra['later']}"
            yield f"{sources.origin(here)}: {what}"
