"""What the documents tell people to type: the configuration is accepted, the commands exist.

Names of files in documents are checked in `../test_tidy.py`. Next on the path: `../demo/`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from pyproxy.commands import cli
from pyproxy.config.compile import make_verifier

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CONFIGURATION_LINES_MAX = 15


def code_of(text: str, language: str = r"\w*") -> list[str]:
    """Return the code blocks of a document, those of one language if it is given."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_configuration_of_the_readme_is_short_and_accepted(tmp_path: Path) -> None:
    configuration, users = code_of((ROOT / "README.md").read_text(), "toml")
    assert len(configuration.splitlines()) <= CONFIGURATION_LINES_MAX
    (tmp_path / "pyproxy.toml").write_text(configuration)
    secret = tmp_path / "users.toml"
    secret.touch(mode=0o600)
    secret.write_text(users.replace("SCRAM-SHA-256$4096:…", make_verifier("secret")))
    done = CliRunner().invoke(cli, ["check", "-c", str(tmp_path / "pyproxy.toml")])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_a_document_names_exists(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    text = document.read_text()
    typed = "\n".join([*code_of(text), *re.findall(r"`([^`\n]+)`", text)])
    made = set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", typed))
    verbs = set(re.findall(r"(?:^|[ /])pyproxy ([a-z]+(?:-[a-z]+)*)\b(?!\.)", typed, re.MULTILINE))
    assert made <= targets
    assert verbs <= set(cli.commands)
