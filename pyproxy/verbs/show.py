"""The read verbs: ``status``, ``pools``, ``clients``, ``servers``, ``workers``, ``targets``.

Not here: the rows themselves (``../admin/rows.py``). Next on the path: ``service.py``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from pyproxy import exitcodes
from pyproxy.errors import OperatorError
from pyproxy.limits import ORDER_S
from pyproxy.verbs.service import CONTROL, STATS, ask
from pyproxy.verbs.tables import listing, table

_COLUMNS = {
    "workers": (
        "worker",
        "pid",
        "state",
        "uptime_s",
        "restarts",
        "incarnation",
        "epoch",
        "clients",
        "waiting",
        "pinned",
        "servers",
        "idle",
        "transactions",
    )
}
"""What people are shown where a row has more than fits a line; ``--json`` has everything."""
_OWN_KEYS = ("ok", "exit", "error", "missing", "silent")


def show(verb: str, runtime_dir: Path, as_json: bool) -> int:
    """Ask, print and return the exit code: 1 if a part did not answer.

    Raises ``OperatorError`` if nobody answers.
    """
    answer = _ask(verb, runtime_dir)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    elif not answer.get("ok"):
        click.echo(f"pyproxy: {answer['error']}", err=True)
    elif "rows" in answer:
        rows = [_chosen(verb, row) for row in answer["rows"]]
        click.echo(table(rows) if rows else f"no {verb}", color=_colours())
    else:
        plain = {key: value for key, value in answer.items() if key not in _OWN_KEYS}
        click.echo(listing(plain), color=_colours())
    if answer.get("missing"):
        click.echo(f"pyproxy: no answer from {', '.join(answer['missing'])}", err=True)
    return int(answer.get("exit", exitcodes.OK))


def _chosen(verb: str, row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in _COLUMNS.get(verb, row) if name in row}


def _ask(verb: str, runtime_dir: Path) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = ask(runtime_dir, STATS, {"verb": verb}, 2 * ORDER_S)
    except OperatorError:
        if verb != "status":
            raise
        # The admin process may be about to start again; the supervisor knows the most of it.
        answer = ask(runtime_dir, CONTROL, {"verb": verb}, ORDER_S)
        answer["workers"] = len(answer["workers"])
        answer |= {"missing": ["the admin process"], "exit": exitcodes.FINDINGS}
    return answer


def _colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
