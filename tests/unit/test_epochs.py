"""Settings are published whole, sealed and numbered, and each worker is told once.

Workers are stand-ins that only have a page entry and a mailbox. Not here: engines. Next on the
path: `test_control.py`.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from pyproxy import mail
from pyproxy.config.compiled import TargetAddress
from pyproxy.demo.children import free_port
from pyproxy.errors import OperatorError
from pyproxy.limits import MAIL_BYTES_MAX, MAIL_DESCRIPTORS_MAX
from pyproxy.plainsocket import new_socket, receive_descriptors
from pyproxy.supervisor.boxes import Boxes
from pyproxy.supervisor.children import Child, Role
from pyproxy.supervisor.epochs import Epochs, Publication, seal
from pyproxy.supervisor.forking import Forked
from pyproxy.supervisor.listeners import Listeners
from tests.process.stand_in import Page
from tests.unit.test_config_check import GOOD
from tests.unit.test_config_compile import compiled

DB1, DB2 = TargetAddress("db1", 5432), TargetAddress("db2", 5432)
NAMES = GOOD.replace("6432", "{port}").replace(
    'host = "127.0.0.1"',
    'host = "db1"\n  tls = "disable"\n\n  [[proxy.target]]\n  host = "127.0.0.1"\n'
    '\n  [[proxy.target]]\n  host = "db2"\n  tls = "disable"',
)


@dataclass
class Bench:
    """Epochs with real listeners and mailboxes."""

    epochs: Epochs
    boxes: Boxes
    page: Page

    def settings(self) -> dict[str, Any]:
        descriptor = self.epochs.settings_fd
        found: dict[str, Any] = json.loads(os.pread(descriptor, 1 << 20, 0))
        return found

    def read(self, worker: int) -> list[tuple[bytes, list[int]]]:
        inbox = new_socket(fileno=os.dup(self.boxes.inbox(worker)))
        found = []
        while got := receive_descriptors(inbox, MAIL_BYTES_MAX, MAIL_DESCRIPTORS_MAX):
            found.append(got)
        inbox.close()
        return found


def child(number: int, incarnation: int) -> Child:
    return Child(Role.of_worker(number), Forked(0, -1), incarnation, 0.0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Epochs of a configuration whose targets are db1, 127.0.0.1 and db2."""
    held = compiled(tmp_path, NAMES.format(port=free_port()))
    listeners, page, boxes = Listeners(), Page(1), Boxes()
    listeners.bind(held.listeners)
    yield Bench(Epochs(held, listeners, cast("Any", page), boxes), boxes, page)
    listeners.close()
    boxes.close_inboxes()
    boxes.close_outboxes()


def test_the_first_epoch_has_what_needs_no_resolver(bench: Bench) -> None:
    assert bench.epochs.number == 1
    told = bench.settings()
    assert told["targets"] == [{"tcp": "127.0.0.1:5432"}]
    assert (told["paused"], told["reconnect"]) == ([], [])
    assert told["workers"] == bench.epochs.workers
    assert told["name"] == "orders"
    assert bench.page.limit == (None, 100)


def test_addresses_stand_in_the_order_of_the_targets(tmp_path: Path) -> None:
    addresses = {DB2: [{"tcp": "10.0.0.2:5432"}], DB1: [{"tcp": "10.0.0.1:5432"}] * 2}
    publication = Publication(
        compiled(tmp_path, NAMES.format(port=1)),
        addresses=addresses,
        paused=frozenset({"b", "a"}),
        reconnect={"a": 7, "*": 3},
        workers=4,
    )
    told = json.loads(publication.text())
    ends = ["10.0.0.1:5432", "127.0.0.1:5432", "10.0.0.2:5432"]
    assert told["targets"] == [{"tcp": end} for end in ends]
    assert told["paused"] == ["a", "b"]
    assert told["reconnect"] == [["*", 3], ["a", 7]]


def test_only_another_set_of_addresses_is_an_epoch(bench: Bench) -> None:
    one, two = {"tcp": "10.0.0.1:5432"}, {"tcp": "10.0.0.2:5432"}
    assert bench.epochs.set_addresses({DB1: [one, two]}) == 2
    assert bench.epochs.set_addresses({DB1: [two, one]}) is None
    assert bench.epochs.set_addresses({TargetAddress("other", 1): [one]}) is None
    assert bench.epochs.set_addresses({DB2: [two]}) == 3
    assert bench.settings()["targets"] == [one, two, {"tcp": "127.0.0.1:5432"}]
    assert bench.epochs.set_addresses({DB1: [two]}) == 4


def test_an_epoch_that_cannot_be_made_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_name: str, _flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", no_room)
        for change in (bench.epochs.pause, bench.epochs.reconnect):
            with pytest.raises(OSError, match="Too many open files"):
                change("shop")
    assert (bench.epochs.number, bench.epochs.paused) == (1, frozenset())
    assert bench.epochs.pause("other") == 2
    assert (bench.settings()["paused"], bench.settings()["reconnect"]) == (["other"], [])


def test_settings_cannot_be_changed_by_whoever_has_them() -> None:
    descriptor = seal("x" * 100_000)
    assert os.fstat(descriptor).st_size == 100_000
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"y", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


def test_a_running_worker_is_told_once_with_settings_and_listeners(bench: Bench) -> None:
    bench.epochs.born_with(0, 1)
    bench.epochs.tell([child(0, 1)])
    assert bench.read(0) == []
    bench.epochs.pause("shop")
    bench.epochs.tell([child(0, 1)])
    bench.epochs.tell([child(0, 1)])
    ((data, descriptors),) = bench.read(0)
    assert data == mail.epoch(2, [(1, False)])
    assert data == b"\x04" + (2).to_bytes(8, "little") + b"\x01" + b"\x01\0\0\0" + b"\0"
    settings, listener = descriptors
    assert json.loads(os.pread(settings, 1 << 20, 0))["paused"] == ["shop"]
    received = new_socket(fileno=listener)
    assert str(received.getsockname()[1]) == str(bench.epochs.compiled.listeners[0].port)
    received.close()
    os.close(settings)


def test_a_worker_with_a_full_inbox_is_told_later(bench: Bench) -> None:
    while bench.boxes.send(3, mail.poke()):
        pass
    bench.epochs.tell([child(3, 9)])
    assert all(data == mail.poke() for data, _ in bench.read(3))
    bench.epochs.tell([child(3, 9)])
    ((data, descriptors),) = bench.read(3)
    assert data[0] == mail.Kind.EPOCH
    for descriptor in descriptors:
        os.close(descriptor)


def test_an_acknowledgement_of_a_former_life_does_not_count(bench: Bench) -> None:
    workers = [child(0, 1), child(1, 2)]
    for number, incarnation in ((0, 1), (1, 2)):
        bench.page.put(number, "incarnation", incarnation)
        bench.page.put(number, "epoch", 1)
    assert bench.epochs.lagging(workers, 1) == []
    assert bench.epochs.lagging(workers, 2) == [0, 1]
    bench.page.put(0, "epoch", 2)
    assert bench.epochs.lagging(workers, 2) == [1]
    assert bench.epochs.lagging([child(0, 3)], 1) == [0]


def test_what_a_dead_worker_did_not_read_is_closed(bench: Bench) -> None:
    reader, writer = os.pipe()
    assert bench.boxes.send(5, b"\x01core's bytes", [writer])
    os.close(writer)
    assert bench.boxes.send(5, mail.poke())
    assert bench.boxes.drain(5) == (2, 1)
    assert os.read(reader, 1) == b""  # the end: no copy is left anywhere
    assert bench.boxes.drain(5) == (0, 0)
    os.close(reader)


def test_pause_and_resume_say_what_they_cannot_do(bench: Bench) -> None:
    bench.epochs.pause("*")
    with pytest.raises(OperatorError, match="everything is paused"):
        bench.epochs.resume("shop")
    bench.epochs.resume("*")
    with pytest.raises(OperatorError, match="'shop' is not paused"):
        bench.epochs.resume("shop")
    bench.epochs.pause("shop")
    bench.epochs.resume("shop")
    assert bench.settings()["paused"] == []


def test_each_reconnect_has_a_later_serial_and_one_of_all_takes_the_others_in(bench: Bench) -> None:
    bench.epochs.reconnect("shop")
    first = dict(bench.settings()["reconnect"])
    bench.epochs.reconnect("shop")
    second = dict(bench.settings()["reconnect"])
    assert second["shop"] > first["shop"]
    bench.epochs.reconnect("*")
    assert list(dict(bench.settings()["reconnect"])) == ["*"]
    assert dict(bench.settings()["reconnect"])["*"] > second["shop"]
