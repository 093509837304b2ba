"""The gate on instruction counts: what passes, what fails, and what is told.

Nothing is counted here; `make test-instructions` does that. Next on the path: `instructions.py`.
"""

from __future__ import annotations

import tomllib

import pytest

from bench import instructions
from bench.instructions import BASELINE, DRIVERS, WORKS, collected, differences, judge


@pytest.mark.parametrize("count", [9_701, 10_000, 10_299])
def test_a_count_within_three_percent_passes(count: int) -> None:
    assert judge("relay_small", "epoll", count, 10_000).passes


def test_a_dearer_work_fails_and_is_told_by_how_much_and_what_to_do() -> None:
    verdict = judge("login", "io_uring", 10_310, 10_000)
    assert not verdict.passes
    for words in ("login, io_uring", "10,310", "3.1 % more", "10,000", "instructions-baseline"):
        assert words in verdict.line


def test_a_gain_has_to_be_written_down() -> None:
    verdict = judge("prepared", "epoll", 9_600, 10_000)
    assert not verdict.passes
    assert "4.0 % less" in verdict.line
    assert "instructions-baseline" in verdict.line


def test_a_work_that_the_baseline_does_not_know_fails() -> None:
    assert not judge("relay_small", "epoll", 10_000, None).passes


def test_counts_of_another_compiler_are_not_compared() -> None:
    there = {"rustc": "1.85.0", "profile": "ci"}
    assert not differences(there, dict(there))
    assert differences({"rustc": "1.90.0", "profile": "ci"}, there) == [
        "rustc is 1.90.0 here and 1.85.0 there"
    ]
    assert differences({"profile": "ci"}, there) == ["rustc is missing here and 1.85.0 there"]


def test_a_report_without_a_count_fails() -> None:
    assert collected("==7== Collected : 18065201\n") == 18_065_201
    for report in ("==7== Collected : 0\n", "killed"):
        with pytest.raises(instructions.WorkFailedError):
            collected(report)


def test_the_baseline_in_the_tree_has_each_work_with_each_driver_and_reads_as_written() -> None:
    text = BASELINE.read_text()
    baseline = tomllib.loads(text)
    taken_with = baseline.pop("taken_with")
    assert {work: set(drivers) for work, drivers in baseline.items()} == {
        work: set(DRIVERS) for work in WORKS
    }
    assert instructions.write(taken_with, baseline) == text
