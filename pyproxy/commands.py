"""The verbs of the command line.

Not here: what they do; each imports its part only when it is called, so that ``status`` needs
neither the supervisor nor pydantic. Next on the path: ``supervisor/run.py``, ``verbs/show.py``,
``verbs/command.py``, ``demo/run.py``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from pyproxy import exitcodes
from pyproxy.errors import OperatorError
from pyproxy.limits import PAUSE_S, PAUSE_S_MAX, WORKERS_MAX

DEFAULT_FILE = "pyproxy.toml"
_PASSWORD_BYTES_MAX = 1024

_file_option: Callable[..., Any] = click.option(
    "-c",
    "--config",
    "file",
    envvar="PYPROXY_CONFIG",
    default=DEFAULT_FILE,
    show_default=True,
    metavar="FILE",
    help="Configuration file; $PYPROXY_CONFIG is used if set.",
)
_json_option: Callable[..., Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON."
)
_set_option: Callable[..., Any] = click.option(
    "--set",
    "flags",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change one setting; wins over environment and files.",
)


def _service_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Add the options by which a verb finds its service."""
    where = click.option(
        "--runtime-dir", metavar="DIR", help="The service's supervisor.runtime_dir."
    )
    which = click.option(
        "-c", "--config", "file", metavar="FILE", help="Or its configuration file."
    )
    made: Callable[..., None] = where(which(_json_option(verb)))
    return made


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-t", "--test", is_flag=True, help="The same as check.")
@_file_option
@click.pass_context
def cli(context: click.Context, test: bool, file: str) -> None:
    """Pool and multiplex PostgreSQL connections."""
    if context.invoked_subcommand is not None:
        if test:
            raise click.UsageError("-t stands alone; it is the same as the command check")
        return
    if not test:
        click.echo(context.get_help())
        context.exit(exitcodes.USAGE)
    _check(file, ())


@cli.command()
@_file_option
@_set_option
def run(file: str, flags: Sequence[str]) -> None:
    """Serve in the foreground until told to stop."""
    from pyproxy.supervisor.loading import ConfigRefusedError
    from pyproxy.supervisor.run import run_service

    try:
        sys.exit(run_service(file, flags))
    except ConfigRefusedError as error:
        _refuse(error.lines)
    except OperatorError as error:
        _fail(error)


@cli.command()
@_file_option
@_set_option
def check(file: str, flags: Sequence[str]) -> None:
    """Check the configuration, offline; list everything that is wrong."""
    _check(file, flags)


@cli.command("hash")
@click.option("--md5", "md5_user", metavar="USER", help="Make the md5 form for this user instead.")
def hash_password(md5_user: str | None) -> None:
    """Turn a password (asked for, or one line of standard input) into a verifier."""
    from pyproxy import _core
    from pyproxy.config.compile import make_verifier

    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password or "\0" in password or len(password.encode()) > _PASSWORD_BYTES_MAX:
        rule = f"a password has 1 to {_PASSWORD_BYTES_MAX} bytes, none of them 0"
        click.echo(f"pyproxy: {rule}", err=True)
        sys.exit(exitcodes.USAGE)
    if md5_user is None:
        click.echo(make_verifier(password))
    else:
        click.echo(_core.md5_inner(password.encode(), md5_user.encode()))


@cli.command()
@click.option("--clients", default=1000, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--servers", default=20, show_default=True, type=click.IntRange(1, 90))
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, WORKERS_MAX))
@click.option(
    "--seconds",
    default=16.0,
    show_default=True,
    type=click.FloatRange(0.1, 600),
    help="How long both storms last, straight to the database and through the proxy.",
)
@click.option("--once", is_flag=True, help="End after the verdict; 0 only if nothing failed.")
def demo(clients: int, servers: int, workers: int, seconds: float, once: bool) -> None:
    """Start a database and the proxy here, let a storm of clients come, and compare."""
    from pyproxy.demo.run import Size, run_demo

    try:
        sys.exit(run_demo(Size(clients, servers, workers, seconds), once=once))
    except OperatorError as error:
        _fail(error)


@cli.command()
def version() -> None:
    """Show the version."""
    import importlib.metadata

    click.echo(f"pyproxy {importlib.metadata.version('pyproxy')}")


@cli.group("config")
def config_group() -> None:
    """Show the configuration that counts, or its schema."""


@config_group.command("show")
@_file_option
@_set_option
@click.option("--origin", is_flag=True, help="Also where each was written and what a reload does.")
@_json_option
def config_show(file: str, flags: Sequence[str], origin: bool, as_json: bool) -> None:
    """List every setting with the value that counts."""
    from pyproxy.config.problems import ConfigError
    from pyproxy.verbs.settings import rows
    from pyproxy.verbs.tables import table

    try:
        found = rows(file, flags, origin=origin)
    except ConfigError as error:
        _refuse(error.problems)
    if as_json:
        import json

        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(table(found))


@config_group.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    from pyproxy.verbs.settings import schema

    click.echo(schema())


def _reading(verb: str, doc: str) -> None:
    """Make one of the verbs that only read."""

    def read(runtime_dir: str | None, file: str | None, as_json: bool) -> None:
        from pyproxy.verbs.show import show

        _end(lambda: show(verb, _service(runtime_dir, file), as_json))

    cli.command(verb, help=doc)(_service_options(read))


_reading("status", "Show how the service is, in a few lines.")
_reading("pools", "Show the pools of each worker: clients and servers by state.")
_reading("clients", "Show every client.")
_reading("servers", "Show every server connection.")
_reading("workers", "Show the workers: what each has and does.")
_reading("targets", "Show the database servers as each worker sees them.")


def _changing(verb: str, doc: str) -> None:
    """Make one of the commands without an argument."""

    def change(runtime_dir: str | None, file: str | None, as_json: bool) -> None:
        from pyproxy.verbs.command import command

        _end(lambda: command(verb, _service(runtime_dir, file), as_json))

    cli.command(verb, help=doc)(_service_options(change))


_changing("reload", "Take a changed configuration over, all of it or nothing.")
_changing("drain", "End the service: each client at its next idle point, within shutdown_timeout.")


def _changing_database(verb: str, doc: str, *, required: bool = False) -> None:
    """Make one of the commands for a database, or for all of them."""

    def change(
        runtime_dir: str | None, file: str | None, as_json: bool, database: str | None
    ) -> None:
        from pyproxy.verbs.command import command

        _end(lambda: command(verb, _service(runtime_dir, file), as_json, database=database))

    argument = click.argument("database", required=required)
    cli.command(verb, help=doc)(argument(_service_options(change)))


_changing_database("resume", "Go on with a paused DATABASE (default: with everything).")
_changing_database("reconnect", "Replace the servers of DATABASE (default: all) as they get idle.")
_changing_database("kill", "Pause DATABASE (* = all) and end its clients.", required=True)


@cli.command()
@_service_options
@click.argument("database", required=False)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, PAUSE_S_MAX),
    default=PAUSE_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until nothing runs any more.",
)
def pause(
    database: str | None, timeout_s: float, runtime_dir: str | None, file: str | None, as_json: bool
) -> None:
    """Begin nothing new for DATABASE (default: for all) and wait until nothing of it runs."""
    from pyproxy.verbs.command import command

    where = _service(runtime_dir, file)
    _end(lambda: command("pause", where, as_json, timeout_s=timeout_s, database=database))


@cli.command("kill-client")
@_service_options
@click.argument("client", type=click.IntRange(min=1), metavar="ID")
def kill_client(client: int, runtime_dir: str | None, file: str | None, as_json: bool) -> None:
    """End the client with this ID, as `clients` shows it."""
    from pyproxy.verbs.command import command

    _end(lambda: command("kill-client", _service(runtime_dir, file), as_json, client=client))


def _service(runtime_dir: str | None, file: str | None) -> Path:
    from pyproxy.verbs.service import find_runtime_dir

    return find_runtime_dir(runtime_dir, file, os.environ)


def _end(verb: Callable[[], int]) -> NoReturn:
    try:
        sys.exit(verb())
    except OperatorError as error:
        _fail(error)


def _check(file: str, flags: Sequence[str]) -> None:
    from pyproxy.config.load import load
    from pyproxy.config.problems import ConfigError

    try:
        loaded = load(file, flags)
    except ConfigError as error:
        _refuse(error.problems)
    for remark in loaded.remarks:
        click.echo(f"note: {remark}", err=True)
    click.echo(f"{file}: ok")


def _refuse(problems: Sequence[object]) -> NoReturn:
    for problem in problems:
        click.echo(str(problem), err=True)
    count = len(problems)
    click.echo(f"pyproxy: {count} problem{'s' if count > 1 else ''} in the configuration", err=True)
    sys.exit(exitcodes.CONFIG)


def _fail(error: OperatorError) -> NoReturn:
    click.echo(f"pyproxy: {error}", err=True)
    sys.exit(error.exit_code)
