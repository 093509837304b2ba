"""Targets become addresses by preference, and one that does not answer is told in one line.

Not here: which address the core uses. Next on the path: `../process/test_arbiter.py`.
"""

from __future__ import annotations

import socket

import pytest

from pyproxy.config.compiled import TargetAddress
from pyproxy.controller.channel import read_found, read_targets, write_found, write_targets
from pyproxy.controller.targets import Resolver, probe_all, resolve
from pyproxy.demo.children import free_port


def test_a_name_gives_each_address_once_and_a_literal_needs_no_resolver() -> None:
    found = resolve(TargetAddress("localhost", 5432))
    assert {"tcp": "127.0.0.1:5432"} in found
    assert len(found) == len({tuple(each.items()) for each in found})
    assert resolve(TargetAddress("::1", 5432)) == [{"tcp": "[::1]:5432"}]
    path = "/run/postgresql/.s.PGSQL.5433"
    assert resolve(TargetAddress("/run/postgresql", 5433)) == [{"unix": path}]


def test_a_name_that_is_not_known_is_told_once_and_does_not_hide_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    unknown, known = TargetAddress("no-such-host.invalid", 1), TargetAddress("127.0.0.1", 1)
    resolver = Resolver()
    for _ in range(2):
        assert resolver.resolve([unknown, known]) == {known: [{"tcp": "127.0.0.1:1"}]}
    (record,) = caplog.records
    assert record.getMessage() == "target_unresolved"
    assert str(record.__dict__["fields"]["target"]) == "no-such-host.invalid:1"


def test_targets_and_addresses_survive_the_way_between_the_processes() -> None:
    targets = [TargetAddress("db1", 5432), TargetAddress("db2", 5433)]
    assert read_targets(write_targets(targets)) == targets
    found = {targets[0]: [{"tcp": "10.0.0.1:5432"}, {"tcp": "10.0.0.2:5432"}]}
    assert read_found(write_found(found)) == found


def test_only_a_target_that_does_not_answer_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = TargetAddress("127.0.0.1", free_port())
        alive = TargetAddress("127.0.0.1", server.getsockname()[1])
        probe_all([alive, dead, TargetAddress("/nowhere", 1)])
    told = [str(record.__dict__["fields"]["target"]) for record in caplog.records]
    assert told == [str(dead), "/nowhere/.s.PGSQL.1"]
    assert "Connection refused" in caplog.records[0].__dict__["fields"]["reason"]
