"""Verbs find the service that is meant, and show answers so that a person can read them.

Not here: a running service (`../process/test_verbs.py`). Next on the path: `test_restarts.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyproxy.commands import cli
from pyproxy.errors import OperatorError
from pyproxy.verbs.service import find_runtime_dir
from pyproxy.verbs.tables import listing, table
from tests.unit.test_config_check import GOOD, write

READING = ("status", "pools", "clients", "servers", "workers", "targets")
CHANGING = ("reload", "drain", "pause", "resume", "reconnect", "kill x", "kill-client 1")


def invoke(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, list(words), env={**environment})


@pytest.mark.parametrize("verb", [*READING, *CHANGING])
def test_a_service_that_is_not_there_is_one_line_and_69(tmp_path: Path, verb: str) -> None:
    result = invoke(*verb.split(), "--runtime-dir", str(tmp_path))
    assert (result.exit_code, result.stdout) == (69, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"pyproxy: no service answers on {tmp_path}/")
    assert "`pyproxy run` starts it" in line


def test_the_service_is_found_by_directory_then_file_then_environment(tmp_path: Path) -> None:
    file = str(write(tmp_path, GOOD))
    environment = {"PYPROXY_RUNTIME_DIR": "/from/environment", "PYPROXY_CONFIG": file}
    assert find_runtime_dir("/given", file, environment) == Path("/given")
    assert find_runtime_dir(None, file, environment) == tmp_path / "run"
    assert find_runtime_dir(None, None, environment) == Path("/from/environment")
    assert find_runtime_dir(None, None, {"PYPROXY_CONFIG": file}) == tmp_path / "run"
    assert find_runtime_dir(None, None, {}) == Path("/run/pyproxy")


def test_a_file_that_says_nothing_means_the_default_and_variables_count(tmp_path: Path) -> None:
    file = str(write(tmp_path, "[log]\n"))
    assert find_runtime_dir(None, file, {}) == Path("/run/pyproxy")
    variable = {"PYPROXY__SUPERVISOR__RUNTIME_DIR": "/other"}
    assert find_runtime_dir(None, file, variable) == Path("/other")


def test_a_file_that_cannot_be_read_is_78(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        find_runtime_dir(None, str(tmp_path / "none.toml"), {})
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    "verb", [["kill"], ["kill-client"], ["kill-client", "x"], ["pause", "--timeout", "-1"]]
)
def test_a_wrong_command_line_ends_with_2(verb: list[str]) -> None:
    assert invoke(*verb).exit_code == 2


def test_a_table_has_each_column_once_and_numbers_to_the_right() -> None:
    rows = [{"worker": 0, "state": "serving"}, {"worker": 12, "state": "draining", "pid": None}]
    assert [line.split() for line in _plain(table(rows)).splitlines()] == [
        ["worker", "state", "pid"],
        ["0", "serving", "-"],
        ["12", "draining", "-"],
    ]
    assert _plain(table(rows)).splitlines()[1].startswith("     0  serving")


def test_what_a_client_calls_itself_cannot_move_the_cursor() -> None:
    shown = table([{"application_name": "\x1b[2Jevil\n"}])
    assert "\x1b[2J" not in shown
    assert len(shown.splitlines()) == 2


def test_a_listing_unfolds_tables() -> None:
    shown = _plain(listing({"state": "serving", "budget": {"held": 1}, "paused": []}))
    assert [line.split() for line in shown.splitlines()] == [
        ["state", "serving"],
        ["budget.held", "1"],
        ["paused", "-"],
    ]


def test_config_show_tells_value_origin_and_what_a_reload_does(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    result = invoke("config", "show", "--origin", "--json", "-c", str(file))
    rows = {row["setting"]: row for row in json.loads(result.stdout)}
    runtime_dir = rows["supervisor.runtime_dir"]
    assert (runtime_dir["value"], runtime_dir["reload"]) == ("run", "restart")
    assert runtime_dir["origin"] == f"{file}:2"
    timeout = rows["proxy[0].pool.connection_borrow_timeout"]
    assert (timeout["value"], timeout["origin"], timeout["reload"]) == ("2m", "default", "live")
    assert rows["proxy[0].target[0].host"]["reload"] == "recycle"
    assert "origin" not in invoke("config", "show", "-c", str(file)).stdout


def test_config_schema_knows_every_setting_and_takes_a_good_file() -> None:
    made = json.loads(invoke("config", "schema").stdout)
    assert made["title"] == "pyproxy"
    pool = made["$defs"]["Pool"]["properties"]
    assert pool["idle_timeout"]["type"] == "string"
    assert pool["init_query"]["reload"] == "recycle"
    assert made["$defs"]["Target"]["required"] == ["host"]


def test_a_verb_imports_neither_gevent_nor_pydantic(tmp_path: Path) -> None:
    """They would take most of a verb's time."""
    code = (
        "import sys; from pyproxy.commands import cli\n"
        f"try: cli(['status', '--runtime-dir', {str(tmp_path)!r}])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('gevent', 'pydantic', 'pyproxy._core') if name in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    ).stdout
    assert output == b"[]\n"


def _plain(text: str) -> str:
    for code in ("\x1b[32m", "\x1b[33m", "\x1b[0m"):
        text = text.replace(code, "")
    return text
