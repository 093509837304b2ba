"""The control socket answers bounded requests from the right callers, and never waits for one.

The loop is turned by hand. Not here: a whole service (`../process/test_verbs.py`). Next on the
path: `test_verbs.py`.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyproxy.errors import OperatorError
from pyproxy.limits import CALLERS_MAX, REQUEST_BYTES_MAX, REQUEST_S
from pyproxy.supervisor.control import Answer, Control, Pending, bind_private
from pyproxy.supervisor.loop import Loop


class Later:
    """An answer that comes when the test says so."""

    def __init__(self) -> None:
        self.answer: Answer | None = None

    def poll(self, _now: float) -> Answer | None:
        return self.answer


class Bench:
    """A control socket whose handler does what the verb says."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "control.sock"
        self.loop = Loop()
        self.later = Later()
        self.control = Control(bind_private(self.path), self.loop, self.handle)
        self.callers: list[socket.socket] = []
        self.now = time.monotonic()

    def handle(self, request: dict[str, Any]) -> Answer | Pending:
        if request["verb"] == "later":
            return self.later
        if request["verb"] == "refuse":
            raise OperatorError("not now", 1)
        if request["verb"] == "big":
            return {"ok": True, "text": "x" * 4_000_000}
        return {"ok": True, "got": request}

    def turn(self, seconds: float = 0.0) -> None:
        self.now += seconds
        for _ in range(5):
            self.control.due(self.now)
            self.loop.turn(0)

    def call(self, text: bytes = b"") -> socket.socket:
        caller = socket.socket(socket.AF_UNIX)
        self.callers.append(caller)
        caller.connect(str(self.path))
        caller.setblocking(False)
        caller.sendall(text)
        self.turn()
        return caller

    def answer(self, caller: socket.socket) -> Any:
        raw = b""
        while True:
            self.turn()
            try:
                part = caller.recv(1 << 20)
            except BlockingIOError:
                continue
            raw += part
            if not part:
                return json.loads(raw) if raw else None


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A control socket in a folder of its own."""
    made = Bench(tmp_path)
    yield made
    for caller in made.callers:
        caller.close()
    made.control.close()


def ended(caller: socket.socket) -> bool:
    try:
        return caller.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_it_is_only_for_the_owner(bench: Bench) -> None:
    assert bench.path.stat().st_mode & 0o777 == 0o600


def test_a_request_is_answered_and_the_connection_ends(bench: Bench) -> None:
    assert bench.answer(bench.call(b'{"verb": "x"}\n')) == {"ok": True, "got": {"verb": "x"}}


def test_a_request_may_come_in_pieces(bench: Bench) -> None:
    caller = bench.call(b'{"verb"')
    bench.turn()
    caller.sendall(b': "x"}\n')
    assert bench.answer(caller)["ok"]


def test_an_answer_that_takes_time_holds_up_nobody(bench: Bench) -> None:
    patient = bench.call(b'{"verb": "later"}\n')
    assert bench.answer(bench.call(b'{"verb": "x"}\n'))["ok"]
    bench.turn(10 * REQUEST_S)
    assert not ended(patient)
    bench.later.answer = {"ok": True}
    assert bench.answer(patient) == {"ok": True}


def test_an_answer_larger_than_the_socket_takes_is_sent_as_the_caller_reads(bench: Bench) -> None:
    assert len(bench.answer(bench.call(b'{"verb": "big"}\n'))["text"]) == 4_000_000


def test_a_refusal_says_why_and_with_which_exit_code(bench: Bench) -> None:
    answer = bench.answer(bench.call(b'{"verb": "refuse"}\n'))
    assert answer == {"ok": False, "error": "not now", "exit": 1}


@pytest.mark.parametrize("line", [b"nonsense\n", b"[]\n", b"\xff\n", b"\n"])
def test_what_is_no_request_is_told_so(bench: Bench, line: bytes) -> None:
    assert bench.answer(bench.call(line))["exit"] == 2


def test_a_fault_of_ours_is_an_answer_too(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    answer = bench.answer(bench.call(b'{"nothing": 1}\n'))
    assert answer["error"].startswith("a fault in the service")
    assert caplog.records[0].getMessage() == "control_failed"


def test_a_line_without_end_is_refused(bench: Bench) -> None:
    caller = bench.call(b"x" * (REQUEST_BYTES_MAX + 1))
    assert bench.answer(caller)["error"] == "the request is too long"


def test_a_silent_caller_is_ended(bench: Bench) -> None:
    caller = bench.call()
    bench.turn(REQUEST_S + 1)
    assert ended(caller)


def test_a_caller_that_leaves_takes_only_its_answer_with_it(bench: Bench) -> None:
    leaver, other = bench.call(b'{"verb": "later"}\n'), bench.call(b'{"verb": "later"}\n')
    leaver.close()
    bench.turn()
    bench.later.answer = {"ok": True}
    assert bench.answer(other) == {"ok": True}


def test_too_many_callers_wait_for_their_turn(bench: Bench) -> None:
    callers = [bench.call() for _ in range(CALLERS_MAX)]
    late = bench.call(b'{"verb": "x"}\n')
    bench.turn()
    with pytest.raises(BlockingIOError):
        late.recv(1)
    callers[0].close()
    bench.turn()
    assert bench.answer(late)["ok"]


def test_a_directory_that_does_not_allow_it_is_one_line_and_78(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"set supervisor.runtime_dir") as caught:
        bind_private(tmp_path / ("x" * 200))
    assert caught.value.exit_code == 78
