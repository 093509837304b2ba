"""The verbs of the command line: ``run``, ``check``, ``hash``, ``version``.

Not here: what they do; each imports its part only when it is called, so that ``hash`` needs no
supervisor. Next on the path: ``supervisor/run.py``.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from pyproxy import exitcodes

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
_set_option: Callable[..., Any] = click.option(
    "--set",
    "flags",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change one setting; wins over environment and files.",
)


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
    from pyproxy.config.problems import ConfigError
    from pyproxy.errors import OperatorError
    from pyproxy.supervisor.run import run_service

    try:
        sys.exit(run_service(file, flags))
    except ConfigError as error:
        _refuse(error)
    except OperatorError as error:
        click.echo(f"pyproxy: {error}", err=True)
        sys.exit(error.exit_code)


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
def version() -> None:
    """Show the version."""
    click.echo(f"pyproxy {importlib.metadata.version('pyproxy')}")


def _check(file: str, flags: Sequence[str]) -> None:
    from pyproxy.config.load import load
    from pyproxy.config.problems import ConfigError

    try:
        loaded = load(file, flags)
    except ConfigError as error:
        _refuse(error)
    for remark in loaded.remarks:
        click.echo(f"note: {remark}", err=True)
    click.echo(f"{file}: ok")


def _refuse(error: Any) -> NoReturn:
    for problem in error.problems:
        click.echo(str(problem), err=True)
    count = len(error.problems)
    click.echo(f"pyproxy: {count} problem{'s' if count > 1 else ''} in the configuration", err=True)
    sys.exit(exitcodes.CONFIG)
