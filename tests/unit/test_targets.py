"""Targets become addresses by preference, and one that does not answer is told in one line.

Not here: which address the core uses. Next on the path: `../process/test_arbiter.py`.
"""

from __future__ import annotations

import socket

import pytest

from pyproxy.config.compile import TargetAddress
from pyproxy.worker.targets import probe_all, resolve_all
from tests.fix_postgres import free_port


def test_addresses_keep_the_order_of_the_targets_and_come_once() -> None:
    targets = [
        TargetAddress("/run/postgresql", 5433),
        TargetAddress("::1", 5432),
        TargetAddress("127.0.0.1", 5432),
        TargetAddress("127.0.0.1", 5432),
    ]
    assert resolve_all(targets) == [
        {"unix": "/run/postgresql/.s.PGSQL.5433"},
        {"tcp": "[::1]:5432"},
        {"tcp": "127.0.0.1:5432"},
    ]


def test_a_name_that_is_not_known_is_told_and_does_not_hide_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    targets = [TargetAddress("no-such-host.invalid", 1), TargetAddress("127.0.0.1", 1)]
    assert resolve_all(targets) == [{"tcp": "127.0.0.1:1"}]
    (record,) = caplog.records
    assert record.getMessage() == "target_unresolved"
    assert str(record.__dict__["fields"]["target"]) == "no-such-host.invalid:1"


def test_only_a_target_that_does_not_answer_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = TargetAddress("127.0.0.1", free_port())
        alive = TargetAddress("127.0.0.1", server.getsockname()[1])
        probe_all([alive, dead, TargetAddress("/nowhere", 1)])
    told = [str(record.__dict__["fields"]["target"]) for record in caplog.records]
    assert told == [str(dead), "/nowhere/.s.PGSQL.1"]
    assert "Connection refused" in caplog.records[0].__dict__["fields"]["reason"]
