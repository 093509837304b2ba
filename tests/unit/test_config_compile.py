"""The compiled configuration says to the core what the operator wrote.

Not here: whether the core takes it (`../process/test_run.py`). Next on the path: `test_log.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pyproxy.config.compile import compile_config
from pyproxy.config.compiled import Compiled, TargetAddress
from pyproxy.config.load import load
from pyproxy.config.reference import reference
from pyproxy.saslprep import saslprep
from tests.unit.test_config_check import GOOD, VERIFIER, write

ROOT = Path(__file__).resolve().parents[2]


def compiled(folder: Path, text: str = GOOD, secret: str = '[app]\npassword = "x"\n') -> Compiled:
    return compile_config(load(write(folder, text, secret), environment={}))


def core(folder: Path, text: str = GOOD, secret: str = '[app]\npassword = "x"\n') -> dict[str, Any]:
    return compiled(folder, text, secret).core


def test_times_are_milliseconds_and_limits_are_numbers(tmp_path: Path) -> None:
    told = core(tmp_path)
    assert told["borrow_timeout_ms"] == 120_000
    assert told["idle_client_timeout_ms"] == 1_800_000
    assert told["limit"] == {"percent": 100}
    assert (told["max_idle_percent"], told["prepared_statements_max"]) == (50, 500)
    assert told["target_name"] == "127.0.0.1:5432"


@pytest.mark.parametrize(
    ("pool", "limit", "idle"),
    [
        ("max_connections = 7", {"connections": 7}, 50),
        ("max_connections = 7\nmax_idle_connections_percent = 10", {"connections": 7}, 10),
        ("max_connections_percent = 40\nmax_idle_connections_percent = 20", {"percent": 40}, 50),
        ("max_connections_percent = 40\nmax_idle_connections_percent = 40", {"percent": 40}, 100),
    ],
)
def test_idle_servers_are_counted_against_the_budget(
    tmp_path: Path, pool: str, limit: dict[str, int], idle: int
) -> None:
    told = core(tmp_path, GOOD.replace('mode = "transaction"', pool))
    assert (told["limit"], told["max_idle_percent"]) == (limit, idle)


def test_a_password_serves_both_sides(tmp_path: Path) -> None:
    (credential,) = core(tmp_path)["credentials"]
    assert credential["client_auth"]["scram"].startswith("SCRAM-SHA-256$4096:")
    assert (credential["server_user"], credential["server_password"]) == ("app", "x")
    assert credential["databases"] == []


def test_a_verifier_stays_as_it_is_and_the_server_has_its_own_login(tmp_path: Path) -> None:
    secret = f'[app]\nverifier = "{VERIFIER}"\nserver_password = "s"\nserver_user = "rw"\n'
    text = GOOD.replace('user = "app"', 'user = "app"\n  databases = ["shop"]')
    (credential,) = core(tmp_path, text, secret)["credentials"]
    assert credential["client_auth"] == {"scram": VERIFIER}
    assert (credential["server_user"], credential["server_password"]) == ("rw", "s")
    assert credential["databases"] == ["shop"]


def test_md5_is_hashed_as_postgresql_stores_it(tmp_path: Path) -> None:
    text = GOOD.replace('user = "app"', 'user = "app"\n  client_auth = "md5"')
    (credential,) = core(tmp_path, text)["credentials"]
    assert credential["client_auth"] == {"md5": "29054b51c8df62aee03e123736334993"}


def test_trust_may_know_a_server_password(tmp_path: Path) -> None:
    text = GOOD.replace('user = "app"', 'user = "app"\n  scheme = "trust"')
    (credential,) = core(tmp_path, text)["credentials"]
    assert credential["client_auth"] == {"trust": True}
    assert credential["server_password"] == "x"
    (credential,) = core(tmp_path, text.replace('secret = "file:users.toml"', ""))["credentials"]
    assert credential["server_password"] is None


def test_a_compiled_configuration_survives_its_way_between_processes(tmp_path: Path) -> None:
    held = compiled(tmp_path, GOOD.replace('"run"', '"run"\nworkers = 3\nuser = "nobody"'))
    assert Compiled.from_json(held.to_json()) == held
    assert (held.service.workers, held.service.user) == (3, "nobody")
    assert held.service.runtime_dir == str(tmp_path / "run")


def test_a_compiled_configuration_shows_no_secret(tmp_path: Path) -> None:
    held = compiled(tmp_path, secret='[app]\npassword = "hunter2"\n')
    assert "hunter2" not in repr(held)
    assert "SCRAM" not in repr(held)
    assert "hunter2" in held.to_json()


def test_what_only_a_restart_changes_is_told_with_its_place(tmp_path: Path) -> None:
    old = compiled(tmp_path)
    changed = GOOD.replace('"run"', '"elsewhere"\nworkers = 3\norphan_timeout = "5s"')
    lines = old.restart_needed(compiled(tmp_path, changed))
    file = tmp_path / "pyproxy.toml"
    assert lines == [
        f"{file}:2: supervisor.runtime_dir: only a restart changes it (now run, here elsewhere)",
        f"{file}:4: supervisor.orphan_timeout: only a restart changes it (now 1m, here 5s)",
    ]
    assert old.restart_needed(old) == []


def test_auto_workers_are_one_per_core(tmp_path: Path) -> None:
    assert compiled(tmp_path).service.workers == len(os.sched_getaffinity(0))


def test_targets_are_written_as_people_know_them() -> None:
    assert str(TargetAddress("db1", 5432)) == "db1:5432"
    assert str(TargetAddress("::1", 5432)) == "[::1]:5432"
    assert str(TargetAddress("/run/pg/", 5433)) == "/run/pg/.s.PGSQL.5433"


def test_only_names_need_a_resolver() -> None:
    assert TargetAddress("db1", 5432).literal() is None
    assert TargetAddress("::1", 5432).literal() == {"tcp": "[::1]:5432"}
    assert TargetAddress("127.0.0.1", 5432).literal() == {"tcp": "127.0.0.1:5432"}
    assert TargetAddress("/run/pg", 5433).literal() == {"unix": "/run/pg/.s.PGSQL.5433"}


@pytest.mark.parametrize(
    ("password", "prepared"),
    [
        ("pencil", b"pencil"),
        ("I\u00adX", b"IX"),
        ("\u00aa", b"a"),
        ("\u2168", b"IX"),
        ("a\u00a0b", b"a b"),
        ("\u0007", b"\x07"),
        ("\u0627\u0031", "\u06271".encode()),
        ("\u00e9\u0007", "\u00e9\u0007".encode()),
    ],
)
def test_passwords_are_prepared_as_rfc_4013_says(password: str, prepared: bytes) -> None:
    assert saslprep(password) == prepared


def test_the_reference_is_written_from_the_settings() -> None:
    """`make docs` writes it anew."""
    assert (ROOT / "docs" / "configuration.md").read_text() == reference()
