"""Rows of several workers become the service's: `pyproxy/admin/rows.py`.

Not here: how they are collected (`../process/test_verbs.py`). Next on the path:
`../process/test_verbs.py`.
"""

from __future__ import annotations

from pyproxy.admin.rows import merge


def test_a_pool_that_two_workers_have_is_one_row() -> None:
    one = {"worker": 0, "database": "a", "user": "u", "cl_waiting": 2, "maxwait_us": 7}
    one |= {"paused": False, "last_failure": None, "pool_mode": "transaction"}
    other = one | {"worker": 1, "cl_waiting": 3, "maxwait_us": 5, "paused": True}
    other |= {"last_failure": "refused"}
    third = one | {"worker": 1, "database": "b"}
    rows = merge("pools", [one, other, third])
    assert [row["database"] for row in rows] == ["a", "b"]
    expected = {"database": "a", "user": "u", "cl_waiting": 5, "maxwait_us": 7, "paused": True}
    assert rows[0] == expected | {"last_failure": "refused", "pool_mode": "transaction"}
    assert one["cl_waiting"] == 2, "what was collected stays as it was"


def test_clients_and_servers_keep_their_worker() -> None:
    rows = [{"worker": 0, "id": 1}, {"worker": 1, "id": 1}]
    assert merge("clients", rows) == rows
    assert merge("targets", []) == []
