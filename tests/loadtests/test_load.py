"""A short load test for real: PostgreSQL, the proxy and Locust as `make load` starts them.

Locust runs as a process of its own; nothing of it is imported here. The arithmetic:
`../unit/test_loadtests.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from loadtests.run import ROOT, command, counted, options, prepare
from pyproxy import exitcodes
from pyproxy.demo.postgres import Postgres as Server
from pyproxy.errors import OperatorError
from tests.fix_postgres import Postgres

RUN_S = 110.0
CLIENTS = 15
RATE = 40
SECONDS = 3
STAY_S = 0.5
LIVES = RATE * SECONDS


@dataclass(frozen=True)
class Load:
    """One finished run of `loadtests.run` and the folder of its results."""

    done: subprocess.CompletedProcess[str]
    out: Path

    def figures(self, target: str) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.out / f"{target}.figures.json").read_text())
        return read

    def rows(self, target: str) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.figures(target)["requests"]}


def run_load(out: Path, *arguments: str) -> Load:
    """Run a storm in which clients come faster than there is room for."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "loadtests.run", "--out", str(out), "--servers", "3"),
            *("--clients", str(CLIENTS), "--rate", str(RATE), "--stay", str(STAY_S)),
            *("--seconds", str(SECONDS), *arguments),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S,
    )
    return Load(done, out)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Run one storm through the proxy and one directly."""
    return run_load(tmp_path_factory.mktemp("load") / "results")


TARGETS = ("proxy", "direct")
STATEMENTS = {"connect", "BEGIN", "INSERT", "SELECT", "COMMIT"}


def test_a_good_run_ends_with_0_and_prints_the_table_that_it_writes(load: Load) -> None:
    assert load.done.returncode == 0, load.done.stdout + load.done.stderr
    page = (load.out / "comparison.md").read_text()
    assert page in load.done.stdout
    assert "| p50 / p95 / p99 | proxy | direct |" in page
    assert f"| clients that were to come | {LIVES} | {LIVES} |" in page
    assert "| clients not served | 0 | 0 |" in page
    assert "proxy: all clients served." in page


@pytest.mark.parametrize("target", TARGETS)
def test_every_client_is_served_and_every_statement_is_one_request(load: Load, target: str) -> None:
    rows = load.rows(target)
    assert set(rows) == STATEMENTS | {"transaction", "life"}
    assert {(row["requests"], row["failures"]) for row in rows.values()} == {(LIVES, 0)}
    assert load.figures(target)["ended"] == LIVES
    assert 1 <= load.figures(target)["connected_most"] <= CLIENTS


@pytest.mark.parametrize("target", TARGETS)
def test_locusts_own_report_and_figures_count_the_same(load: Load, target: str) -> None:
    counted = {
        row["name"]: (row["num_requests"], row["num_failures"])
        for row in json.loads((load.out / f"{target}.json").read_text())
    }
    ours = load.rows(target)
    assert counted == {name: (row["requests"], row["failures"]) for name, row in ours.items()}
    html = (load.out / f"{target}.html").read_text()
    assert "<html" in html
    assert "transaction" in html


@pytest.mark.parametrize("target", TARGETS)
def test_waiting_for_a_free_client_counts_although_the_service_is_quick(
    load: Load, target: str
) -> None:
    rows = load.rows(target)
    for row in rows.values():
        for name, service_ms in row["service_ms"].items():
            assert row["latency_ms"][name] >= service_ms
    # There is room for 30 a second, half a second each; the last of 40 a second waits for 1 s.
    waited_s = LIVES * STAY_S / CLIENTS - SECONDS
    for name in ("connect", "life"):
        waited_ms = rows[name]["latency_ms"]["max"] - rows[name]["service_ms"]["p50"]
        assert waited_ms >= waited_s * 1e3 / 2
        assert rows[name]["service_ms"]["p50"] < rows[name]["latency_ms"]["p50"]


def test_server_connections_are_counted_and_stay_within_the_proxys_limit(load: Load) -> None:
    page = (load.out / "comparison.md").read_text()
    (line,) = [line for line in page.splitlines() if "server connections at a time" in line]
    proxied, direct = (int(cell) for cell in line.split("|")[2:4])
    assert 1 <= proxied <= 3
    assert direct > 3


SLEEP_S = 0.2


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Run one storm through the proxy in which each transaction waits and then fails."""
    statement = f"SELECT pg_sleep({SLEEP_S}); SELECT 1/0"
    storm = ("--seconds", "1", "--stay", "0", "--clients", "40", "--servers", "20")
    out = tmp_path_factory.mktemp("planted") / "results"
    return run_load(out, "--target", "proxy", *storm, "--statement", statement)


def test_a_statement_that_fails_is_a_failure_of_the_run(planted: Load) -> None:
    assert planted.done.returncode == 1, planted.done.stdout + planted.done.stderr
    rows = planted.rows("proxy")
    assert rows["--statement"]["errors"] == {"division by zero": RATE}
    assert rows["life"]["failures"] == rows["transaction"]["failures"] == RATE
    assert f"{RATE} of {RATE} clients not served" in planted.done.stdout
    assert f"- {RATE} × --statement: division by zero" in planted.done.stdout
    assert not (planted.out / "direct.html").exists()


def test_a_client_that_waits_for_its_answer_does_not_hold_up_the_others(planted: Load) -> None:
    """One after another, half of them would connect after more than half of all sleeps."""
    half_of_all_ms = RATE * SLEEP_S / 2 * 1e3
    assert planted.rows("proxy")["connect"]["latency_ms"]["p50"] < half_of_all_ms / 2


@pytest.fixture
def lying(postgres15: Postgres) -> Iterator[Postgres]:
    """Give a server that stores another tag than it is given."""
    postgres15.sql("CREATE TABLE loadtest_rows (tag text PRIMARY KEY)")
    postgres15.sql(
        "CREATE FUNCTION loadtest_lie() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.tag := NEW.tag || '-foreign'; RETURN NEW; END $$"
    )
    postgres15.sql(
        "CREATE TRIGGER lie BEFORE INSERT ON loadtest_rows"
        " FOR EACH ROW EXECUTE FUNCTION loadtest_lie()"
    )
    yield postgres15
    postgres15.sql("DROP TABLE loadtest_rows")
    postgres15.sql("DROP FUNCTION loadtest_lie")


def run_locust(files: Path, server: Postgres, host: str) -> subprocess.CompletedProcess[str]:
    given = options(["--clients", "5", "--rate", "10", "--seconds", "1", "--stay", "0"])
    target = {"PGHOST": host, "PGPORT": str(server.port), "PGUSER": "postgres"}
    return subprocess.run(
        command(given, files),
        cwd=ROOT,
        env=dict(os.environ) | target | {"PGDATABASE": "test"},
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S,
    )


def test_a_row_that_is_not_the_clients_own_is_a_failure(lying: Postgres, tmp_path: Path) -> None:
    done = run_locust(tmp_path / "direct", lying, lying.host)
    assert done.returncode == 1, done.stderr
    rows = Load(done, tmp_path).rows("direct")
    assert rows["INSERT"]["failures"] == rows["life"]["failures"] == 10
    assert all("-foreign" in text for text in rows["INSERT"]["errors"])
    assert rows["connect"]["failures"] == rows["BEGIN"]["failures"] == 0


def test_nothing_but_this_machine_is_loaded(postgres15: Postgres, tmp_path: Path) -> None:
    done = run_locust(tmp_path / "direct", postgres15, "192.0.2.1")
    assert done.returncode != 0
    assert "load only this machine" in done.stderr
    assert not list(tmp_path.iterdir())


def test_figures_of_an_earlier_run_are_removed_before_a_new_one(tmp_path: Path) -> None:
    old = [tmp_path / name for name in ("proxy.figures.json", "direct.html", "proxy.log")]
    for path in old:
        path.write_text("{}")
    kept = tmp_path / "notes.txt"
    kept.touch()
    prepare(tmp_path)
    assert not any(path.exists() for path in old)
    assert kept.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="--out") as refused:
        prepare(tmp_path / "file" / "results")
    assert refused.value.exit_code == exitcodes.UNAVAILABLE


@pytest.mark.parametrize("wrong", [("--rate", "nan"), ("--seconds", "inf"), ("--stay", "nan")])
def test_what_is_no_number_is_a_wrong_argument(wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as refused:
        options(list(wrong))
    assert refused.value.code == exitcodes.USAGE


def test_a_server_that_could_not_be_counted_is_no_result() -> None:
    class Gone:
        def cursor(self) -> None:
            raise OperatorError("PostgreSQL failed", exitcodes.UNAVAILABLE)

    with pytest.raises(OperatorError, match="failed"), counted(cast("Server", Gone())):
        pass
