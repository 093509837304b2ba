"""The table of all settings: names, types, ranges, defaults and what they are for.

The one source for ``check``, ``run`` and ``docs/configuration.md``. Not here: what spans several
settings or is not available yet (``rules.py``), and how the core gets them (``compile.py``). Next
on the path: ``rules.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from pyproxy.config.sources import DEFAULT_RUNTIME_DIR
from pyproxy.config.units import Duration
from pyproxy.limits import WORKERS_MAX

Text = Annotated[str, Field(max_length=4096)]
Name = Annotated[str, Field(min_length=1, max_length=63)]
ReloadClass = Literal["live", "recycle", "restart"]
"""What a reload does with a new value: it counts at once; for new server connections; it is refused
until a restart."""
Percent = Annotated[int, Field(ge=1, le=100)]


def setting(
    default: Any, doc: str, *, later: str = "", on_reload: ReloadClass = "live", **limits: Any
) -> Any:
    """Describe one setting.

    ``default`` is written as the operator would write it (``...``: required), ``doc`` is its line
    in the reference, ``later`` says which part of the product will use a setting that has no effect
    yet, ``on_reload`` what a reload does with a new value.
    """
    extra: dict[str, Any] = {"later": later} if later else {}
    if on_reload != "live":
        extra["reload"] = on_reload
    return Field(default, description=doc, json_schema_extra=extra, validate_default=True, **limits)


def reload_class(info: FieldInfo) -> ReloadClass:
    """Return what a reload does with a new value of a setting."""
    extra = info.json_schema_extra
    found: Any = extra.get("reload", "live") if isinstance(extra, dict) else "live"
    return cast("ReloadClass", found)


class Section(BaseModel):
    """A table of the configuration; unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Supervisor(Section):
    """The process that binds the listeners and keeps the workers alive."""

    workers: Annotated[int, Field(ge=1, le=WORKERS_MAX)] | Literal["auto"] = setting(
        "auto", "Worker processes; auto = one per core."
    )
    runtime_dir: Text = setting(
        DEFAULT_RUNTIME_DIR,
        "Directory of the pid file and of the sockets that the verbs use; made if missing.",
        on_reload="restart",
    )
    shutdown_timeout: Annotated[int, Duration("0s", "1d")] = setting(
        "120s", "Longest drain after SIGTERM; then the remaining clients are ended."
    )
    user: Text = setting(
        "",
        "Drop to this user after binding. It must be able to read the configuration and the secret "
        "files, or a reload is refused.",
        on_reload="restart",
    )
    orphan_timeout: Annotated[int, Duration("0s", "1d")] = setting(
        "60s",
        "A worker without its supervisor serves on for this long and then drains.",
        on_reload="restart",
    )
    io: Literal["auto", "io_uring", "epoll"] = setting(
        "auto",
        "How the engine waits for sockets; auto is io_uring where it works, else epoll.",
        on_reload="restart",
    )


class Admin(Section):
    """Metrics, health and the console."""

    http: Text = setting(
        "127.0.0.1:9187", "Address of metrics, health and dashboard.", later="the admin server"
    )
    admin_users: list[Name] = setting(
        [], "Users who may run the SQL console's commands.", later="the console"
    )
    stats_users: list[Name] = setting(
        [], "Users who may only SHOW in the SQL console.", later="the console"
    )


class Telemetry(Section):
    """Traces and metrics that are sent somewhere."""

    otlp_endpoint: Text = setting(
        "", "OpenTelemetry collector; OTEL_EXPORTER_OTLP_ENDPOINT wins.", later="telemetry"
    )
    trace_sample: Annotated[float, Field(ge=0, le=1, strict=False)] = setting(
        0.01, "Share of requests that leave a span, 0 to 1.", later="telemetry"
    )
    cloudwatch_emf: Text = setting(
        "", "Path, or stdout, for CloudWatch embedded metrics.", later="telemetry"
    )


class Log(Section):
    """Log lines, on standard error."""

    format: Literal["logfmt", "json", "text"] = setting(
        "logfmt", "Form of a line.", on_reload="restart"
    )
    level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "Least level shown.", on_reload="restart"
    )


class Tls(Section):
    """Encryption towards clients."""

    cert: Text = setting("", "Certificate chain (PEM).")
    key: Text = setting("", "Private key (PEM).")
    client_ca: Text = setting("", "CA of client certificates; set = they are verified.")


class Endpoint(Section):
    """A set of addresses that clients connect to."""

    name: Name = setting("default", "Name for logs and metrics.")
    listen: Annotated[list[Text], Field(min_length=1, max_length=64)] = setting(
        ["127.0.0.1:6432"],
        "Addresses: ip:port, [ip6]:port, localhost:port or unix:/path (libpq wants the file called "
        ".s.PGSQL.<port>; it is made with mode 0777, as PostgreSQL's is: the login decides).",
    )
    role: Literal["read_write", "read_only"] = setting("read_write", "Which targets it leads to.")


class Pool(Section):
    """Server connections: how many, for how long, when they change hands."""

    mode: Literal["transaction", "session", "statement"] = setting(
        "transaction", "When a server changes hands."
    )
    max_connections: Annotated[int, Field(ge=1, le=100_000)] | None = setting(
        None, "Most server connections, over all users and databases; instead of the percentage."
    )
    max_connections_percent: Percent = setting(
        100,
        "The same as percent of what the target allows to ordinary users: max_connections without "
        "superuser_reserved_connections and reserved_connections.",
    )
    max_idle_connections_percent: Annotated[int, Field(ge=0, le=100)] | None = setting(
        None,
        "Most idle server connections, in percent of the same number (of max_connections, where "
        "that is set), at most max_connections_percent. Unset: half of the limit.",
    )
    min_connections: Annotated[int, Field(ge=0, le=100_000)] = setting(
        0, "Servers kept warm for each user and database that has been used."
    )
    max_prepared_statements: Annotated[int, Field(ge=1, le=100_000)] = setting(
        500, "Prepared statements kept on a server; the least recently used goes first."
    )
    connection_borrow_timeout: Annotated[int, Duration("0s", "300s", "as RDS Proxy's")] = setting(
        "120s", "Longest wait for a server; 0s = an error unless one is free at once."
    )
    connect_timeout: Annotated[int, Duration("1ms", "1h")] = setting(
        "15s", "A server must be connected and logged in after this."
    )
    check_delay: Annotated[int, Duration()] = setting(
        "30s", "A server that idled longer is asked whether it lives before a client gets it."
    )
    idle_timeout: Annotated[int, Duration()] = setting(
        "5m", "An idle server above min_connections is closed after this; 0s = never."
    )
    idle_transaction_timeout: Annotated[int, Duration()] = setting(
        "0s", "A client idle inside a transaction for this long is ended; 0s = never."
    )
    query_timeout: Annotated[int, Duration()] = setting(
        "0s", "A request that runs longer is cancelled (57014); 0s = never."
    )
    query_wait_notify: Annotated[int, Duration()] = setting(
        "5s", "A waiting client gets a NOTICE with its place in the queue after this; 0s = never."
    )
    max_lifetime: Annotated[int, Duration()] = setting(
        "24h", "A server is replaced after this, less up to 10 % at random; 0s = never."
    )
    init_query: Text = setting(
        "", "SQL run on each new server before its first client.", on_reload="recycle"
    )
    session_pinning_filters: list[Literal["EXCLUDE_VARIABLE_SETS"]] = setting(
        [], "Statements that shall not pin.", later="the state tracker"
    )
    routines: Literal["trust", "verify", "pin"] = setting(
        "trust", "Whether functions are believed not to change session state."
    )


class Auth(Section):
    """One user who may log in."""

    user: Name = setting(..., "User name that the client gives.")
    scheme: Literal["file", "secrets", "auth_query", "passthrough", "trust"] = setting(
        "file", "Where the credential comes from; trust = no proof, on loopback and Unix only."
    )
    secret: Text = setting(
        "",
        "file:PATH (relative to this file, mode 0600, a table a user) or env:NAME (a password or a "
        "verifier).",
    )
    iam: Literal["disabled", "enabled", "required"] = setting("disabled", "IAM tokens.")
    client_auth: Literal[
        "scram-sha-256", "md5", "caching_sha2", "native", "ed25519", "clear-over-tls"
    ] = setting("scram-sha-256", "How the client proves who it is.")
    databases: list[Name] = setting(["*"], 'Databases this user may ask for; "*" = all.')


class Monitor(Section):
    """The minimal role that probes use."""

    user: Name = setting("pyproxy_monitor", "User name of the probes.", later="health probes")
    secret: Text = setting("", "As in proxy.auth.", later="health probes")
    database: Name = setting("postgres", "Database of the probes.", later="health probes")


class Target(Section):
    """A database server. With several, the first that answers is used."""

    host: Annotated[str, Field(min_length=1, max_length=255)] = setting(
        ...,
        "Name, address, or (starting with /) the directory of a Unix socket.",
        on_reload="recycle",
    )
    port: Annotated[int, Field(ge=1, le=65535)] = setting(5432, "Port.", on_reload="recycle")
    tls: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] | None = setting(
        None,
        "Encryption towards it. Unset: disable on loopback and Unix, else verify-full.",
        on_reload="recycle",
    )


class Proxy(Section):
    """One proxy: listeners, users, a pool and the database behind it."""

    name: Name = setting(..., "Name for logs, metrics and errors.")
    engine: Literal["postgresql", "mysql", "mariadb"] = setting("postgresql", "Wire protocol.")
    require_tls: bool = setting(False, "Refuse clients without TLS.")
    max_clients: Annotated[int, Field(ge=1, le=1_000_000)] = setting(
        10_000, "Most clients at a time, those that are logging in included."
    )
    login_timeout: Annotated[int, Duration("1ms", "1h")] = setting(
        "60s", "A client must have logged in after this."
    )
    idle_client_timeout: Annotated[int, Duration("1s", "8h", "as RDS Proxy's")] = setting(
        "30m", "A client without a request for this long is ended."
    )
    client_lifetime: Annotated[int, Duration()] = setting(
        "0s", "A client is ended at its next idle point after this; 0s = never."
    )
    allow: Annotated[list[Text], Field(max_length=1024)] = setting(
        ["127.0.0.0/8", "::1/128"], "Networks that may connect; Unix sockets always may."
    )
    allow_public: bool = setting(
        False, "Say that a public address is meant; it also needs require_tls."
    )
    tls: Tls | None = setting(None, "Encryption towards clients.")
    endpoint: Annotated[list[Endpoint], Field(min_length=1)] = setting(
        [Endpoint()], "Addresses that clients connect to."
    )
    pool: Pool = setting(Pool(), "Server connections.")
    auth: list[Auth] = setting([], "Users who may log in.")
    monitor: Monitor | None = setting(None, "The role that probes use.")
    target: list[Target] = setting([], "Database servers.")


class Settings(Section):
    """The whole file."""

    supervisor: Supervisor = setting(Supervisor(), "Processes.")
    admin: Admin = setting(Admin(), "Metrics, health and the console.")
    telemetry: Telemetry = setting(Telemetry(), "Traces and metrics that are sent somewhere.")
    log: Log = setting(Log(), "Log lines.")
    proxy: list[Proxy] = setting([], "Proxies.")
