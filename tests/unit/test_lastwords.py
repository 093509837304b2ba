"""What a child leaves behind is kept within bounds, and its end is what is quoted.

Not here: a child that dies (`../process/test_arbiter.py`). Next on the path: `test_notify.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from pyproxy.limits import LAST_LINES, LAST_WORDS_BYTES_MAX
from pyproxy.log import log_event
from pyproxy.supervisor.lastwords import LastWords, _Recorder


@pytest.fixture
def words() -> Iterator[LastWords]:
    """The last words of a child that does not exist."""
    made = LastWords("test")
    yield made
    os.close(made.descriptor)


def test_the_last_lines_are_quoted(words: LastWords) -> None:
    for number in range(30):
        words.add(f"line {number}\n\n")
    assert words.lines() == [f"line {number}" for number in range(30 - LAST_LINES, 30)]


def test_a_new_life_begins_empty(words: LastWords) -> None:
    words.add("before\n")
    words.clear()
    assert words.lines() == []
    words.add("after\n")
    assert words.lines() == ["after"]


def test_years_of_warnings_leave_room_for_the_end(words: LastWords) -> None:
    for number in range(100_000):
        words.add(f"warning {number}\n")
    assert os.fstat(words.descriptor).st_size <= LAST_WORDS_BYTES_MAX
    os.write(words.descriptor, b"panicked\n")
    assert words.lines()[-2:] == ["warning 99999", "panicked"]


def test_one_text_is_bounded(words: LastWords) -> None:
    words.add("x" * 10 * LAST_WORDS_BYTES_MAX + "the end\n")
    assert os.fstat(words.descriptor).st_size <= LAST_WORDS_BYTES_MAX
    assert words.lines()[0].endswith("the end")


def test_a_faults_dump_does_not_hide_its_cause(words: LastWords) -> None:
    words.add("panicked: a bug\nFatal Python error: Aborted\n\nCurrent thread 0x1:\n")
    for number in range(40):
        words.add(f'  File "/lib/part.py", line {number} in call\n')
    words.add("\nExtension modules: one, two\n")
    assert words.lines()[:2] == ["panicked: a bug", "Fatal Python error: Aborted"]
    assert len(words.lines()) == 6


def test_bytes_that_are_no_text_do_no_harm(words: LastWords) -> None:
    os.write(words.descriptor, b"\xff\xfe panic\n")
    assert words.lines() == ["\ufffd\ufffd panic"]


def test_warnings_are_kept_and_the_daily_lines_are_not(words: LastWords) -> None:
    logger, recorder = logging.getLogger("pyproxy.test"), _Recorder(words)
    logger.addHandler(recorder)
    log_event(logger, logging.INFO, "serving")
    log_event(logger, logging.WARNING, "server_failed", reason="no route")
    logger.removeHandler(recorder)
    (line,) = words.lines()
    assert 'event=server_failed reason="no route"' in line
