"""The load test's arithmetic with made-up numbers: schedule, percentiles, table, verdict.

Nothing here runs Locust, which would patch the standard library of these tests. The real thing:
`../loadtests/test_load.py`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.comparison import WHOLE, Outcome, errors, page, shown, table
from loadtests.figures import ERROR_TEXTS_MAX, OTHER_ERRORS, Recorder, percentile, summary
from loadtests.loopback import check_loopback
from loadtests.run import command, environment, options
from loadtests.schedule import Arrivals, Schedule, Timing

ROOT = Path(__file__).resolve().parents[2]


def test_starts_are_evenly_spaced_from_the_first() -> None:
    schedule = Schedule(start_s=100.0, per_second=4.0, count=3)
    assert [schedule.intended_s(number) for number in range(3)] == [100.0, 100.25, 100.5]


def test_a_request_that_begins_late_is_charged_from_its_intended_start() -> None:
    late = Timing(intended_s=10.0, begun_s=12.0, ended_s=12.5)
    assert late.latency_ms == pytest.approx(2500)
    assert late.service_ms == pytest.approx(500)


def test_latency_is_never_below_service_time_even_for_an_early_start() -> None:
    early = Timing(intended_s=10.0, begun_s=9.9, ended_s=10.1)
    assert early.latency_ms == early.service_ms == pytest.approx(200)


def test_a_clients_own_pause_is_in_neither_time() -> None:
    stayed = Timing(intended_s=1.0, begun_s=1.5, ended_s=6.0, left_out_s=4.0)
    assert stayed.service_ms == pytest.approx(500)
    assert stayed.latency_ms == pytest.approx(1000)


def test_arrivals_are_handed_out_in_order_each_once_and_then_no_more() -> None:
    arrivals = Arrivals(per_second=10.0, count=3, lead_s=0.5)
    taken = [arrivals.take(now_s) for now_s in (50.0, 50.0, 60.0, 60.0, 61.0)]
    assert taken == [(0, 50.5), (1, 50.6), (2, 50.7), None, None]


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, 1), (50, 5), (51, 6), (95, 10), (99, 10), (100, 10)]
)
def test_a_percentile_is_a_value_that_was_measured(percent: float, expected: float) -> None:
    assert percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], percent) == expected


def test_a_summary_takes_values_in_any_order_and_says_nothing_about_none() -> None:
    values = [float(value) for value in range(1000, 0, -1)]
    assert summary(values) == {"p50": 500, "p95": 950, "p99": 990, "max": 1000}
    assert summary([]) == {}


def test_failures_are_counted_and_stay_out_of_the_percentiles() -> None:
    recorder = Recorder()
    for latency_ms in (10.0, 20.0, 30.0):
        recorder.add("connect", "connect", latency_ms, latency_ms - 5, None)
    recorder.add("connect", "connect", 0.1, 0.1, "FATAL:  too many clients\nand more")
    (row,) = recorder.rows()
    assert (row["requests"], row["failures"]) == (4, 1)
    assert row["errors"] == {"FATAL:  too many clients": 1}
    assert row["latency_ms"] == {"p50": 20, "p95": 30, "p99": 30, "max": 30}
    assert row["service_ms"] == {"p50": 15, "p95": 25, "p99": 25, "max": 25}


def test_error_texts_are_limited_and_none_is_lost_from_the_count() -> None:
    recorder = Recorder()
    for number in range(ERROR_TEXTS_MAX + 5):
        recorder.add("SQL", "SELECT", 1, 1, f"error {number}")
    (row,) = recorder.rows()
    assert row["failures"] == ERROR_TEXTS_MAX + 5
    assert len(row["errors"]) == ERROR_TEXTS_MAX + 1
    assert row["errors"][OTHER_ERRORS] == 5


def request(kind: str, name: str, done: int, failed: int = 0, error: str = "") -> dict[str, Any]:
    times = {"p50": 1.0, "p95": 20.0, "p99": 1234.5, "max": 2000.0} if done else {}
    return {
        "kind": kind,
        "name": name,
        "requests": done + failed,
        "failures": failed,
        "errors": {error: failed} if failed else {},
        "latency_ms": times,
        "service_ms": times,
    }


def outcome(
    target: str, *rows: dict[str, Any], servers: int = 5, allowed: int | None = None
) -> Outcome:
    figures = {
        "plan": {"lives": 100},
        "connected_most": 40,
        "elapsed_s": 5.0,
        "locust_busy": 0.25,
        "requests": list(rows),
    }
    return Outcome(target, figures, servers, allowed)


def all_served(servers: int = 5, allowed: int | None = None) -> Outcome:
    rows = [request("connect", "connect", 100), request("SQL", "SELECT", 100)]
    rows += [request(WHOLE, "transaction", 100), request(WHOLE, "life", 100)]
    return outcome("proxy", *rows, servers=servers, allowed=allowed)


def half_refused() -> Outcome:
    rows = [request("connect", "connect", 50, 50, "too many"), request("SQL", "SELECT", 49, 1, "x")]
    rows += [request(WHOLE, "transaction", 49, 1, "x"), request(WHOLE, "life", 49, 51, "y")]
    return outcome("direct", *rows)


def test_the_table_has_a_column_a_target_and_counts_each_request_once() -> None:
    lines = table([all_served(), half_refused()]).splitlines()
    assert lines[0] == "| p50 / p95 / p99 | proxy | direct |"
    assert len({line.count("|") for line in lines}) == 1
    for expected in (
        "| clients that were to come | 100 | 100 |",
        "| clients not served | 0 | 51 |",
        "| logins and statements | 200 | 150 |",
        "| of these failed | 0 | 51 |",
        "| clients served a second | 20.0 | 9.8 |",
        "| most server connections at a time | 5 | 5 |",
        "| Locust's own use of one core | 25% | 25% |",
    ):
        assert expected in lines


def test_times_are_shown_with_as_many_digits_as_say_something() -> None:
    assert shown({"p50": 0.123, "p95": 45.67, "p99": 1234.5}) == "0.12 / 45.7 / 1,234"
    assert shown({}) == "–"


def test_nothing_is_found_only_if_every_client_was_served_within_the_budget() -> None:
    assert all_served(servers=5, allowed=5).findings() == []
    assert all_served(servers=6, allowed=5).findings() == ["6 server connections, 5 allowed"]
    assert half_refused().findings() == [
        "51 of 100 clients not served",
        "51 of 150 requests failed",
    ]


def test_clients_that_never_ended_are_not_served() -> None:
    cut = outcome("proxy", request("connect", "connect", 100), request(WHOLE, "life", 97))
    assert cut.findings() == ["3 of 100 clients not served"]
    nobody = outcome("proxy")
    assert nobody.findings() == ["100 of 100 clients not served"]
    assert "| whole life, from the intended start, ms | – |" in table([nobody])


def test_the_page_lists_each_failed_request_once_the_most_frequent_first() -> None:
    assert errors(half_refused()) == ["50 × connect: too many", "1 × SELECT: x"]
    text = page("What was run.", [all_served(), half_refused()])
    assert text.startswith("What was run.\n\n| p50")
    assert "\n\nproxy: all clients served.\n\n" in text
    assert text.endswith("requests failed.\n- 50 × connect: too many\n- 1 × SELECT: x\n")


@pytest.mark.parametrize(
    "wrong",
    ["--clients 0", "--rate -1", "--stay -1", "--rate 1 --seconds 0.1", "--target moon"],
)
def test_numbers_that_make_no_sense_end_with_2(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        options(wrong.split())
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_locust_is_told_all_of_the_storm_and_the_password_by_environment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGHOSTADDR", "192.0.2.1")
    monkeypatch.setenv("LOCUST_RUN_TIME", "1h")
    monkeypatch.setenv("STORM_RATE", "9999")
    given = options(["--clients", "7", "--rate", "3", "--seconds", "2", "--stay", "0.5"])
    words = " ".join(command(given, Path("somewhere/proxy")))
    assert "--clients 7 --rate 3.0 --seconds 2.0 --stay 0.5" in words
    told = environment(1234, "hidden")
    assert told["PGPASSWORD"] == "hidden"
    assert "hidden" not in words
    assert told["PGPORT"] == "1234"
    assert not {"PGHOSTADDR", "LOCUST_RUN_TIME", "STORM_RATE"} & set(told)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "/run/postgresql"])
def test_this_machine_may_be_loaded(host: str) -> None:
    check_loopback({"PGHOST": host})


@pytest.mark.parametrize(
    "elsewhere",
    [
        {},
        {"PGHOST": "192.0.2.1"},
        {"PGHOST": "db.example"},
        {"PGHOST": "127.0.0.1,192.0.2.1"},
        {"PGHOST": "/run/postgresql,192.0.2.1"},
        {"PGHOST": "127.0.0.1", "PGHOSTADDR": "192.0.2.1"},
        {"PGHOST": "127.0.0.1", "PGSERVICE": "production"},
    ],
)
def test_nothing_else_may_be_loaded(elsewhere: dict[str, str]) -> None:
    with pytest.raises(SystemExit, match="load only this machine"):
        check_loopback(elsewhere)


def test_the_program_that_starts_locust_does_not_import_it() -> None:
    code = "import sys, loadtests.run; print({'locust', 'gevent'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()"
