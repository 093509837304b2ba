"""The verbs that change a running service; the supervisor carries them out.

Not here: what they do (``../supervisor/orders.py``, ``../supervisor/reload.py``). Next on the path:
``service.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pyproxy import exitcodes
from pyproxy.limits import ACKNOWLEDGE_S, LOAD_S, ORDER_S
from pyproxy.verbs.service import CONTROL, ask

_TAKES_S = {"reload": 2 * (LOAD_S + ACKNOWLEDGE_S), "kill": ACKNOWLEDGE_S + ORDER_S}
"""How long the supervisor may take for a verb; a reload may wait for the one before it."""


def command(
    verb: str, runtime_dir: Path, as_json: bool, *, timeout_s: float | None = None, **more: Any
) -> int:
    """Carry a verb out, print its outcome, and return the exit code. Raises ``OperatorError``.

    ``timeout_s`` is how long the service may wait on behalf of the caller; ``more`` are further
    fields of the request.
    """
    request: dict[str, Any] = {"verb": verb, **more}
    wait_s = _TAKES_S.get(verb, ACKNOWLEDGE_S)
    if timeout_s is not None:
        request["timeout_s"] = timeout_s
        wait_s = timeout_s + ACKNOWLEDGE_S
    answer = ask(runtime_dir, CONTROL, request, wait_s)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    elif answer["ok"]:
        click.echo(f"{verb}: {_told(answer)}")
    else:
        for line in answer.get("problems", ()):
            click.echo(line, err=True)
        click.echo(f"pyproxy: {answer['error']}", err=True)
    return int(answer.get("exit", exitcodes.OK if answer["ok"] else exitcodes.FINDINGS))


def _told(answer: dict[str, Any]) -> str:
    facts = {key: value for key, value in answer.items() if key != "ok"}
    return ", ".join(["ok", *(f"{key} {value}" for key, value in facts.items())])
