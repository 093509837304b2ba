"""The demo's verdict: what counts as a broken promise, and what the table says.

Next on the path: `../demo/test_demo.py`.
"""

from __future__ import annotations

from pyproxy.demo.storm import Life, Outcome
from pyproxy.demo.verdict import broken_promises, percentile, praise, table

GOOD = Outcome(
    [Life(n / 1000) for n in range(1, 101)], most_clients=9, most_servers=5, confirmed=100, kept=100
)
REFUSED = Outcome(
    [Life(0.001)] * 97 + [Life(0.5, "sorry, too many clients already")] * 3,
    most_clients=60,
    most_servers=50,
    confirmed=97,
    kept=97,
)


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([1.0], 0.99) == 1.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(100)], 0.99) == 98.0


def test_a_storm_without_errors_within_the_limit_breaks_nothing() -> None:
    assert broken_promises(GOOD, servers=5) == []
    assert praise(GOOD).startswith("100 clients on 5 server connections")


def test_an_error_a_connection_too_many_and_a_lost_commit_are_each_named() -> None:
    assert broken_promises(REFUSED, servers=50) == ["3 of 100 clients were refused or failed"]
    assert broken_promises(GOOD, servers=4) == ["5 server connections, 4 are the limit"]
    lost = Outcome(GOOD.lives, 9, 5, confirmed=100, kept=99)
    assert broken_promises(lost, servers=5) == ["100 commits were confirmed, 99 are kept"]


def test_the_table_shows_both_sides_and_why_clients_failed() -> None:
    lines = table(REFUSED, GOOD).splitlines()
    assert lines[2].split() == ["clients", "100", "100"]
    assert "50.0 ms" in lines[8]
    assert lines[-1] == "straight to PostgreSQL: 3 x sorry, too many clients already"


def test_a_storm_without_any_answer_has_no_percentiles() -> None:
    nobody = Outcome([Life(20.0, "no answer")], 1, 0, 0, 0)
    assert table(nobody, nobody).count("-  ") >= 2
    assert broken_promises(nobody, servers=5) == ["1 of 1 clients were refused or failed"]
