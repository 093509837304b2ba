"""A log whose reader does not read costs lines, never time.

Not here: what a line looks like (`test_log.py`). Next on the path: `../process/test_run.py`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path

import pytest

from pyproxy.log import EventFormatter
from pyproxy.logsink import LogSink
from tests.fix_postgres import wait_until


def sink_to(descriptor: int) -> LogSink:
    sink = LogSink(descriptor)
    sink.setFormatter(EventFormatter("logfmt"))
    return sink


def record(event: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("pyproxy", logging.INFO, "", 0, event, (), None)
    made.fields = fields
    return made


def test_a_full_pipe_drops_lines_and_tells_how_many_when_there_is_room_again() -> None:
    reader, writer = os.pipe()
    sink = sink_to(writer)
    for number in range(5_000):
        sink.emit(record("told", number=number, text="x" * 100))
    taken = os.read(reader, 1 << 20).decode()
    sink.emit(record("again"))
    sink.emit(record("at_last"))
    taken += os.read(reader, 1 << 20).decode()
    lines = taken.splitlines()
    told = sum("event=told" in line and line.endswith("x" * 100) for line in lines)
    (dropped,) = [line for line in lines if "event=log_lines_dropped" in line]
    assert dropped.endswith(f"lines={5_000 - told}")
    assert 0 < told < 5_000
    assert "event=again" in taken
    assert lines[-1].endswith("event=at_last")


def test_the_descriptor_of_others_keeps_its_flags() -> None:
    _reader, writer = os.pipe()
    sink_to(writer).emit(record("told"))
    assert os.get_blocking(writer)


def test_a_socket_that_nobody_reads_does_not_hold_anybody_up() -> None:
    one, other = socket.socketpair()
    sink = sink_to(one.fileno())
    for _ in range(20_000):
        sink.emit(record("told", text="x" * 100))
    assert other.recv(65_536).count(b"event=told") > 10
    other.close()
    sink.emit(record("nobody_is_left"))
    sink.close()
    one.close()


def test_lines_of_several_processes_are_appended_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        sinks = [sink_to(file.fileno()), sink_to(file.fileno())]
    for number in range(10):
        sinks[number % 2].emit(record("told", number=number))
    assert [line.split("=")[-1] for line in path.read_text().splitlines()] == list("0123456789")


@pytest.mark.parametrize("size", [10_000, 200_000])
def test_a_line_longer_than_the_room_does_not_run_into_the_next(size: int) -> None:
    reader, writer = os.pipe()
    sink = sink_to(writer)
    sink.put("x" * size)
    os.set_blocking(reader, False)
    parts = [os.read(reader, 1 << 20)]
    sink.put("next")

    def has_next() -> bool:
        with contextlib.suppress(BlockingIOError):
            parts.append(os.read(reader, 1 << 20))
        return b"".join(parts).endswith(b"\nnext\n")

    wait_until(has_next, "the next line on a line of its own")
