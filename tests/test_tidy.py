"""What a rule says, a test checks: sizes, headers, words, dependencies and names in the whole tree.

Nothing here runs the product. The rules are told in `CONTRIBUTING.md`. Next on the path: `unit/`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES_MAX = 800
FUNCTION_LINES_MAX = 70
COLUMNS_MAX = 100
BLOB_BYTES_MAX = 256 * 1024

OWN_CRATES = {"auth", "engine", "ledger", "pgwire", "proxy-core", "sqlscan", "sim", "python"} | {
    "fuzz",
    "bench",
}
CORE_USES = {"auth", "ledger", "pgwire", "mywire", "sqlscan"}
# What each crate may use of ours; None leaves it open. Crates that are absent do not exist yet.
MAY_USE: dict[str, set[str]] = {
    "pgwire": set(),
    "mywire": set(),
    "sqlscan": set(),
    "auth": set(),
    "ledger": set(),
    "core": CORE_USES,
}
NO_DEPENDENCIES = {"ledger", "pgwire", "mywire", "sqlscan"}
RUNTIMES = {"tokio", "async-std", "smol", "mio", "monoio", "compio", "glommio", "futures"}
# Written in two parts, so that this file does not contain what it forbids.
BANNED = (
    r"/" + r"work/",
    r"\.\./" + r"shared",
    r"helper " + r"session",
    r"(?:index\.|static\.)?crates\." + r"io/",
    r"pypi\." + r"org",
    r"files\." + r"pythonhosted",
    r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
    r"\b(?:Clau" + r"de|Anthr" + r"opic|Chat" + r"GPT|language " + r"model)\b",
)
SKIPS = r"#\[ignor" + r"e|pytest\.mark\.(?:ski" + r"p|xfai" + r"l)|pytest\.ski" + r"p\("
# Where a test may be left out, and why.
SKIPS_ALLOWED = {
    "rust/engine/src/tests.rs": "the body of another test, which runs it in a process of its own",
    "tests/process/test_io.py": "a machine may lack io_uring, or forbid it",
    "tests/fix_postgres.py": "a machine may lack one of the two server versions",
}
SLEEPS = r"(?:time\.sle" + r"ep|gevent\.sle" + r"ep|asyncio\.sle" + r"ep|thread::sle" + r"ep)\("
# How many pauses a file may have; none has a reason so far.
SLEEPS_ALLOWED: dict[str, int] = {}
CODE = {".py", ".pyi", ".rs", ".sh", ".go", ".java", ".mjs"}
TEXT = CODE | {".md", ".toml", ".in", ".yaml", ".yml", ".json", ".txt", ".xml", ".mod", ".svg"}


@cache
def tracked() -> tuple[Path, ...]:
    """Return the files of the project: those in git, and new ones that git would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout.decode()
    found = (ROOT / name for name in listed.split("\0") if name)
    return tuple(sorted(path for path in found if path.is_file()))


def files(*suffixes: str) -> list[Path]:
    return [path for path in tracked() if path.suffix in suffixes]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def report(findings: list[str]) -> None:
    if findings:
        pytest.fail("\n".join(["", *sorted(findings)]), pytrace=False)


@cache
def manifest(crate: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / "rust" / crate / "Cargo.toml").read_text())


def crates() -> list[str]:
    return sorted(path.parent.name for path in (ROOT / "rust").glob("*/Cargo.toml"))


def dependencies(crate: str, *, tests: bool = False) -> set[str]:
    """Return the packages a crate uses, under their own names."""
    found: dict[str, Any] = dict(manifest(crate).get("dependencies", {}))
    for target in manifest(crate).get("target", {}).values():
        found.update(target.get("dependencies", {}))
    found.update(manifest(crate).get("build-dependencies", {}))
    if tests:
        found.update(manifest(crate).get("dev-dependencies", {}))
    return {
        spec.get("package", name) if isinstance(spec, dict) else name
        for name, spec in found.items()
    }


def test_files_are_at_most_800_lines_and_100_columns() -> None:
    findings = []
    for path in files(*CODE):
        lines = path.read_text().split("\n")
        if len(lines) - 1 > FILE_LINES_MAX:
            findings.append(f"{name_of(path)}: {len(lines) - 1} lines")
        for number, line in enumerate(lines, 1):
            if len(line) > COLUMNS_MAX:
                findings.append(f"{name_of(path)}:{number}: {len(line)} columns")
    report(findings)


def python_functions(path: Path) -> Iterator[tuple[str, int, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1


def rust_functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Find functions by indentation: rustfmt closes each with a brace below its first line."""
    lines = path.read_text().split("\n")
    for start, line in enumerate(lines):
        found = re.match(r"( *)(?:pub(?:\([a-z]+\))? )?(?:const )?(?:unsafe )?fn (\w+)", line)
        if found is None or line.rstrip().endswith((";", "}")):
            continue
        closing = found[1] + "}"
        for end in range(start + 1, len(lines)):
            if lines[end] == closing:
                yield found[2], start + 1, end - start + 1
                break
            if lines[end].startswith(found[1] + ")") and lines[end].rstrip().endswith(";"):
                break  # a declaration over several lines


def test_functions_are_at_most_70_lines() -> None:
    findings = []
    for path in files(".py", ".rs"):
        functions = python_functions if path.suffix == ".py" else rust_functions
        for name, line, length in functions(path):
            if length > FUNCTION_LINES_MAX:
                findings.append(f"{name_of(path)}:{line}: {name} has {length} lines")
    report(findings)


def test_every_source_file_begins_with_a_header() -> None:
    findings = []
    for path in files(".py", ".rs"):
        text = path.read_text()
        if path.suffix == ".rs":
            headed = text.startswith("//!")
        else:
            headed = text == "" or ast.get_docstring(ast.parse(text)) is not None
        if not headed:
            findings.append(name_of(path))
    report(findings)


def matches(pattern: str, paths: list[Path]) -> Iterator[tuple[str, int, str]]:
    wanted = re.compile(pattern)
    for path in paths:
        for number, line in enumerate(path.read_text(errors="replace").split("\n"), 1):
            if wanted.search(line):
                yield name_of(path), number, line.strip()


def test_banned_words_appear_nowhere() -> None:
    plain = [path for path in tracked() if path.suffix in TEXT or path.suffix == ""]
    report([f"{name}:{line}: {text}" for name, line, text in matches("|".join(BANNED), plain)])


def test_tests_wait_for_conditions_and_never_sleep() -> None:
    found: dict[str, list[str]] = {}
    in_tests = [path for path in files(".py") if name_of(path).startswith("tests/")]
    for name, line, text in matches(SLEEPS, [*in_tests, *files(".rs")]):
        found.setdefault(name, []).append(f"{name}:{line}: {text}")
    report([hit for name, hits in found.items() for hit in hits[SLEEPS_ALLOWED.get(name, 0) :]])


def test_no_test_is_left_out_without_a_reason_in_the_list() -> None:
    hits = matches(SKIPS, files(".py", ".rs"))
    report([f"{name}:{line}: {text}" for name, line, text in hits if name not in SKIPS_ALLOWED])


def test_files_named_in_docs_exist() -> None:
    """A path in backquotes or a link in a Markdown file names something in the tree."""
    known = {name_of(path) for path in tracked()}
    folders = {parent.as_posix() for name in known for parent in Path(name).parents}
    named = re.compile(r"`([\w./-]+/[\w.-]+\.(?:rs|py|md|toml|pyi))`|\]\((?!https?:|#)([^)#]+)")
    findings = []
    for path in files(".md"):
        base = path.parent.relative_to(ROOT).as_posix()
        for number, line in enumerate(path.read_text().split("\n"), 1):
            for code, link in named.findall(line):
                name = (code or link).rstrip("/")
                places = {name, f"{base}/{name}".removeprefix("./"), f"rust/{name}"}
                places.add(re.sub(r"^(\w+)/", r"rust/\1/src/", name))
                if not places & (known | folders):
                    findings.append(f"{name_of(path)}:{number}: {name}")
    report(findings)


def test_every_next_on_the_path_names_a_file() -> None:
    stems = {path.name for path in tracked()} | {path.parent.name for path in tracked()}
    findings = []
    for path in files(".py"):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        for name in re.findall(r"`+([\w./*-]+)`+", docstring.partition("Next")[2]):
            last = name.rstrip("/").rsplit("/", 1)[-1]
            if last not in stems:
                findings.append(f"{name_of(path)}: {name}")
    report(findings)


def test_crates_use_only_what_their_place_allows() -> None:
    findings = []
    for crate in crates():
        uses = dependencies(crate)
        allowed = MAY_USE.get(crate)
        if allowed is not None and not uses & OWN_CRATES <= allowed:
            findings.append(f"rust/{crate} uses {sorted(uses & OWN_CRATES - allowed)}")
        if crate in NO_DEPENDENCIES and uses:
            findings.append(f"rust/{crate} uses {sorted(uses)}, but takes std only")
        if crate == "core" and uses - CORE_USES:
            findings.append(f"rust/core uses {sorted(uses)}")
        if crate != "python" and "pyo3" in uses:
            findings.append(f"rust/{crate} uses pyo3, which belongs to rust/python")
        if uses & RUNTIMES:
            findings.append(f"rust/{crate} uses {sorted(uses & RUNTIMES)}: the loop is our own")
        if uses & {"sim", "bench", "fuzz"}:
            findings.append(f"rust/{crate} depends on {sorted(uses & {'sim', 'bench', 'fuzz'})}")
    report(findings)


def test_every_crate_takes_the_workspace_lints_and_unsafe_stays_in_the_engine() -> None:
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]
    assert workspace["lints"]["rust"]["unsafe_code"] == "forbid"
    findings = []
    for crate in crates():
        lints = manifest(crate).get("lints", {})
        if crate in {"engine", "fuzz"}:
            continue
        if lints.get("workspace") is not True:
            findings.append(f"rust/{crate} does not take the lints of the workspace")
    unsafe = re.compile(r"^\s*(?:pub )?unsafe (?:fn|impl|\{)|[=(] unsafe \{|allow\(unsafe_code")
    for path in files(".rs"):
        name = name_of(path)
        if not name.startswith(("rust/engine/", "rust/fuzz/")) and unsafe.search(path.read_text()):
            findings.append(f"{name} has unsafe code")
    report(findings)


def test_the_lock_file_takes_packages_from_one_registry_only() -> None:
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    sources = {package.get("source", "") for package in lock["package"]}
    assert {source for source in sources if not source.startswith("registry+")} <= {""}
    assert len(sources - {""}) <= 1
    packages = [package["name"] for package in lock["package"]]
    assert not RUNTIMES & set(packages)


def test_big_files_stay_out_of_the_tree() -> None:
    big = [path for path in tracked() if path.stat().st_size > BLOB_BYTES_MAX]
    report([f"{name_of(path)}: {path.stat().st_size} bytes" for path in big])
