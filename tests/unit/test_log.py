"""A log line is one line whatever the network puts into it.

Not here: what is logged. Next on the path: `test_cli.py`.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from pyproxy.log import EventFormatter


def record(event: str, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("pyproxy", logging.WARNING, "", 0, event, (), None)
    made.created, made.process = 1_700_000_000.25, 42
    made.fields = fields
    return made


def test_logfmt_writes_key_value_and_leaves_out_what_is_not_there() -> None:
    line = EventFormatter("logfmt").format(record("login_failed", user="app", sqlstate=None, n=3))
    head = "ts=2023-11-14T22:13:20.250Z level=warning pid=42"
    assert line == f"{head} event=login_failed user=app n=3"


@pytest.mark.parametrize("form", ["logfmt", "json", "text"])
@pytest.mark.parametrize("user", ["a\nlevel=error", 'a"b', "a b", "\x1b[31m", "\u2028", "a=b"])
def test_no_value_can_break_or_forge_a_line(form: str, user: str) -> None:
    line = EventFormatter(form).format(record("login_failed", user=user))
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    if form == "logfmt":
        assert line.endswith(f"user={json.dumps(user)}")


def test_json_reads_back() -> None:
    line = EventFormatter("json").format(record("pinned", client=7, reason="listen"))
    assert json.loads(line)["reason"] == "listen"
    assert json.loads(line)["client"] == 7


def test_a_long_value_is_cut() -> None:
    line = EventFormatter("logfmt").format(record("server_failed", reason="x" * 100_000))
    assert len(line) < 3000
