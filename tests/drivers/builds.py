"""Builds the programs of the driver matrix once, into `target/drivers`, and says how to start them.

A build is done again when a file of its folder has changed. Nothing here runs a program. Next on
the path: `test_matrix.py`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).resolve().parent
BUILT = ROOT / "target" / "drivers"
BUILD_S = 400
GO_NEEDED = (1, 21)  # from here on it fetches the toolchain that go.mod names by itself

Command = list[str]


def tool(name: str, how: str) -> str:
    """Return the path of a program; fail with the way to get it."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed ({how})", pytrace=False)
    return found


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run a step of a build and return its output; fail with that."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=BUILD_S,
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}: {done.stdout[-3000:]}", pytrace=False)
    return done.stdout


def _digest(folder: Path) -> str:
    """Return a hash over the files of a folder, names and contents."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return whole.hexdigest()


@contextmanager
def _stale(language: str) -> Iterator[Path | None]:
    """Give the folder to build into, or None if what it holds is built from today's files.

    One process builds at a time; it counts as built when the block ends without an error.
    """
    folder = BUILT / language
    folder.mkdir(parents=True, exist_ok=True)
    stamp, digest = folder / ".built", _digest(SOURCES / language)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == digest:
            yield None
            return
        yield folder
        stamp.write_text(digest)


def python(module: str) -> Callable[[], Command]:
    """Return how to start a Python program; the test's own interpreter has the drivers."""
    return lambda: [sys.executable, "-m", f"tests.drivers.python.{module}"]


def node(file: str) -> Callable[[], Command]:
    """Return how to build and start a node program."""

    def build() -> Command:
        how = "apt install nodejs npm"
        program, npm = tool("node", how), tool("npm", how)
        with _stale("node") as folder:
            if folder is not None:
                shutil.copytree(SOURCES / "node", folder, dirs_exist_ok=True)
                run(npm, "ci", "--silent", cwd=folder)
        return [program, "--no-deprecation", str(BUILT / "node" / file)]

    return build


def go(which: str) -> Callable[[], Command]:
    """Return how to build and start the Go program with one of its two drivers."""

    def build() -> Command:
        how = "apt install golang-go on Debian 13 or Ubuntu 24.04, else https://go.dev/dl"
        program = tool("go", how)
        with _stale("go") as folder:
            if folder is not None:
                told = run(program, "version", cwd=SOURCES / "go", GOTOOLCHAIN="local")
                found = re.search(r"go(\d+)\.(\d+)", told)
                if found is None or (int(found[1]), int(found[2])) < GO_NEEDED:
                    pytest.fail(f"{told.strip()} is too old, 1.21 is needed ({how})", pytrace=False)
                build = (program, "build", "-o", str(folder / "matrix"), ".")
                run(*build, cwd=SOURCES / "go", GOTOOLCHAIN="auto")  # distributions say "local"
        return [str(BUILT / "go" / "matrix"), which]

    return build


def java() -> Command:
    """Build the Java program and return how to start it."""
    how = "apt install default-jdk-headless maven"
    program, maven = tool("java", how), tool("mvn", how)
    tool("javac", how)
    with _stale("java") as folder:
        if folder is not None:
            for old in ("classes", "lib"):
                shutil.rmtree(folder / old, ignore_errors=True)
            where = f"-Dbuild.folder={folder}"
            run(maven, "-q", "-B", where, "process-classes", cwd=SOURCES / "java")
    paths = (BUILT / "java" / "classes", BUILT / "java" / "lib" / "*")
    return [program, "-cp", ":".join(str(path) for path in paths), "matrix.Main"]


def rust() -> Command:
    """Build the Rust program and return how to start it."""
    cargo = tool("cargo", "https://rustup.rs")
    with _stale("rust") as folder:
        if folder is not None:
            build = (cargo, "build", "--locked", "--quiet")
            run(*build, cwd=SOURCES / "rust", CARGO_TARGET_DIR=str(folder))
    return [str(BUILT / "rust" / "debug" / "matrix")]
