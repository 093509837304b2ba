"""Runs the demo from its first line to its last: database, proxy, two storms, verdict, live line.

Not here: the parts. Next on the path: ``../commands.py``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

from pyproxy import exitcodes
from pyproxy.demo.children import tail
from pyproxy.demo.postgres import USER, Postgres
from pyproxy.demo.service import Service
from pyproxy.demo.storm import TABLE_SQL, Outcome, Storm
from pyproxy.demo.surroundings import (
    EndedError,
    check_open_files,
    forget_foreign_settings,
    ignore_signals,
    let_signals_end,
    scratch_folder,
)
from pyproxy.demo.verdict import broken_promises, praise, table
from pyproxy.errors import OperatorError

LIVE_S = 1.0
"""How often the live line is drawn, in seconds."""
_BESIDE_BAR = 36
"""Columns of a line with a progress bar that are not the bar; wrapped lines cannot be redrawn."""


@dataclass(frozen=True)
class Size:
    """What is asked for: clients of a storm, server connections, workers, seconds of both storms.

    ``seconds`` is how long both storms last together: in each, clients come for a quarter of it and
    stay for as long.
    """

    clients: int
    servers: int
    workers: int
    seconds: float


def run_demo(size: Size, *, once: bool) -> int:
    """Run the demo and return its exit code: 0 if the proxy kept its promises, else 1.

    ``once``: end after the verdict; otherwise stay until a signal. Raises ``OperatorError`` (69)
    if something that the demo needs is not there.
    """
    click.echo(
        f"pyproxy demo: {size.clients:,} short-lived clients on {size.servers} server connections"
    )
    if importlib.util.find_spec("psycopg2") is None:
        text = "the demo's clients need psycopg2: pip install 'pyproxy[demo]'"
        raise OperatorError(text, exitcodes.UNAVAILABLE)
    check_open_files(size.clients)
    forget_foreign_settings(os.environ)
    try:
        let_signals_end()
        with ExitStack() as stack:
            try:
                return _show(size, stack, once=once)
            finally:
                ignore_signals()
    except EndedError:
        click.echo("\nended before the verdict")
        return exitcodes.FINDINGS
    except BrokenPipeError:
        raise  # nobody reads what is told here any more
    except OSError as error:
        text = f"this machine refused it: {error}"
        raise OperatorError(text, exitcodes.UNAVAILABLE) from None


def _show(size: Size, stack: ExitStack, *, once: bool) -> int:
    scratch = stack.enter_context(scratch_folder("pyproxy-demo-"))
    server = _start_server(scratch, stack)
    service = _start_service(scratch, server, size, stack)
    direct = _storm("straight to PostgreSQL", server.url, size, server)
    proxied = _storm("through pyproxy", service.url, size, server)
    click.echo(f"\n{table(direct, proxied)}\n")
    broken = broken_promises(proxied, size.servers)
    if (code := service.ended()) is not None:
        broken.append(f"the proxy ended with {code}")
    for promise in broken:
        _say(f"broken: {promise}", "red")
    if broken:
        click.echo(f"the end of the proxy's log:\n{service.log_tail()}")
    else:
        _say(praise(proxied), "green")
    if not once:
        _stay(server, service, size)
    return exitcodes.FINDINGS if broken else exitcodes.OK


def _start_server(scratch: Path, stack: ExitStack) -> Postgres:
    began = time.monotonic()
    folder = scratch / "postgres"
    folder.mkdir(mode=0o700)
    server = Postgres(folder)
    stack.callback(server.stop)
    server.start()
    with server.cursor() as cursor:
        cursor.execute(f"{TABLE_SQL}; ALTER TABLE visits OWNER TO {USER}")
    _tell(f"PostgreSQL {server.version}", server.url, began)
    return server


def _start_service(scratch: Path, server: Postgres, size: Size, stack: ExitStack) -> Service:
    began = time.monotonic()
    folder = scratch / "pyproxy"
    folder.mkdir(mode=0o700)
    service = Service(folder, server, servers=size.servers, workers=size.workers)
    stack.callback(service.stop)
    service.start()
    _tell(f"pyproxy, {size.workers} workers", service.url, began)
    return service


def _tell(what: str, url: str, began: float) -> None:
    click.echo(f"  {what:<22} psql {url}   ({time.monotonic() - began:.1f} s)")


def _say(text: str, colour: str) -> None:
    click.secho(text, fg=None if os.environ.get("NO_COLOR") else colour)


def _storm(name: str, url: str, size: Size, server: Postgres) -> Outcome:
    storm = Storm(name, url, size.clients, size.seconds / 4)
    if not sys.stdout.isatty():
        click.echo(f"  a storm {name} …")
        return storm.run(server, lambda _: None)
    label, width = f"  {name:<22}", min(36, max(1, _columns() - _BESIDE_BAR))
    with click.progressbar(length=size.clients, label=label, show_eta=False, width=width) as bar:
        return storm.run(server, lambda done: bar.update(done - bar.pos))


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _stay(server: Postgres, service: Service, size: Size) -> None:
    """Show what the service does, once a second, until a signal or the end of either."""
    click.echo(f"\nIt stays up: use the addresses above. Settings: {service.config_path}")
    click.echo(f"Look inside: pyproxy status | pools | clients | servers -c {service.config_path}")
    click.echo("Ctrl-C ends it and removes everything.")
    try:
        while service.ended() is None and server.ended() is None:
            if sys.stdout.isatty():
                click.echo(f"\r\033[K{_live_line(service, size)[: _columns() - 1]}", nl=False)
            threading.Event().wait(LIVE_S)
    except EndedError:
        click.echo("\nended")
        return
    who, code, log_path = "the proxy", service.ended(), service.log_path
    if code is None:
        who, code, log_path = "PostgreSQL", server.ended(), server.log_path
    text = f"{who} ended with {code}; the end of its log:\n{tail(log_path)}"
    raise OperatorError(text, exitcodes.UNAVAILABLE)


def _live_line(service: Service, size: Size) -> str:
    try:
        now = service.status()
    except OperatorError as error:
        return str(error)
    busy = now["servers"] - now["idle"]
    return (
        f"{time.strftime('%H:%M:%S')}  {now['clients']:,} clients, {now['waiting']:,} waiting, "
        f"{now['servers']} of {size.servers} server connections, {busy} busy"
    )
