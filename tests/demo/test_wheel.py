"""The wheel: built as `make wheel` does, installed where nothing else is, and tried there.

Next on the path: `../../README.md`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD_S = 1200
INSTALL_S = 300
DEMO_S = 300


def run(*command: str | Path, cwd: Path, seconds: float) -> str:
    """Run a command that must succeed; return what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=seconds,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout


@pytest.fixture
def outside() -> Iterator[Path]:
    """Give a folder outside the tree that every account can enter."""
    with tempfile.TemporaryDirectory(prefix="wheel-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.timeout(BUILD_S + INSTALL_S + DEMO_S)
def test_one_wheel_runs_the_demo_in_an_empty_environment(outside: Path) -> None:
    profile = os.environ.get("PROFILE", "ci")
    build = ("build", "--quiet", "--locked", "--profile", profile, "--out", outside / "dist")
    run(Path(sys.executable).with_name("maturin"), *build, cwd=ROOT, seconds=BUILD_S)
    (wheel,) = (outside / "dist").iterdir()
    assert "-cp311-abi3-" in wheel.name
    run(sys.executable, "-m", "venv", outside / "env", cwd=outside, seconds=INSTALL_S)
    programs = outside / "env" / "bin"
    install = ("install", "--quiet", "--disable-pip-version-check", f"{wheel}[demo]")
    run(programs / "pip", *install, cwd=outside, seconds=INSTALL_S)
    where = run(
        *(programs / "python", "-c", "import pyproxy; print(pyproxy.__file__)"),
        cwd=outside,
        seconds=60,
    )
    assert str(outside) in where
    demo = ("demo", "--once", "--clients", "100", "--seconds", "1")
    told = run(programs / "pyproxy", *demo, cwd=outside, seconds=DEMO_S)
    assert "no error, no commit lost" in told
