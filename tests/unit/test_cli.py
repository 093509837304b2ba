"""The verbs end with the documented exit codes and one line a fault.

Not here: a running service (`../process/test_run.py`). Next on the path: `test_listeners.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyproxy.commands import cli
from pyproxy.config.secrets import verifier_flaw
from tests.unit.test_config_check import GOOD, write


def invoke(*words: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, list(words), input=text)


@pytest.mark.parametrize("verb", ["check -c {}", "-t -c {}"])
def test_check_ends_with_0_for_a_good_file(tmp_path: Path, verb: str) -> None:
    file = write(tmp_path, GOOD)
    result = invoke(*verb.format(file).split())
    assert (result.exit_code, result.stdout) == (0, f"{file}: ok\n")


@pytest.mark.parametrize("verb", ["check -c {}", "-t -c {}"])
def test_check_lists_every_problem_and_ends_with_78(tmp_path: Path, verb: str) -> None:
    file = write(tmp_path, GOOD.replace('mode = "', 'mod = "').replace("6432", "99999"))
    result = invoke(*verb.format(file).split())
    assert result.exit_code == 78
    assert f"{file}:8: proxy[0].pool.mod: unknown key" in result.stderr
    assert f"{file}:11: proxy[0].endpoint[0].listen[0]: port 99999" in result.stderr
    assert result.stderr.endswith("pyproxy: 2 problems in the configuration\n")
    assert result.stdout == ""


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    result = invoke("check", "-c", str(tmp_path / "none.toml"))
    assert result.exit_code == 78
    assert "cannot be read" in result.stderr


def test_check_tells_settings_without_effect(tmp_path: Path) -> None:
    result = invoke("check", "-c", str(write(tmp_path, GOOD)), "--set", "admin.stats_users=['a']")
    assert result.exit_code == 0
    assert "admin.stats_users: has no effect before" in result.stderr


@pytest.mark.parametrize("words", [["nonsense"], ["check", "--nonsense"], [], ["-t", "version"]])
def test_a_wrong_command_line_ends_with_2(words: list[str]) -> None:
    assert invoke(*words).exit_code == 2


def test_hash_makes_a_verifier_from_standard_input() -> None:
    result = invoke("hash", text="pencil\n")
    assert result.exit_code == 0
    assert verifier_flaw(result.stdout.strip()) == ""
    assert invoke("hash", text="pencil\n").stdout != result.stdout


def test_hash_makes_the_md5_form_for_a_user() -> None:
    result = invoke("hash", "--md5", "app", text="x\n")
    assert result.stdout == "29054b51c8df62aee03e123736334993\n"


@pytest.mark.parametrize("password", ["\n", "a\0b\n", "x" * 2000 + "\n"])
def test_hash_refuses_what_cannot_be_a_password(password: str) -> None:
    result = invoke("hash", text=password)
    assert (result.exit_code, result.stdout) == (2, "")


def test_version_shows_one() -> None:
    result = invoke("version")
    assert result.exit_code == 0
    assert result.stdout.startswith("pyproxy 0.")
