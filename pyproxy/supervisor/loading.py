"""Reads, checks and compiles the configuration in a forked child, and takes the result over.

The supervisor never imports what that needs (pydantic and the rules: some 15 MB), so the workers
forked from it stay small; start and reload take the same way. If the child dies, the caller gets a
problem that says so, and nothing has changed. Not here: the checks (``../config/load.py``). Next on
the path: ``reload.py``.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Sequence

from pyproxy.config.compiled import Compiled
from pyproxy.limits import COMPILED_BYTES_MAX, KILL_AFTER_S, LOAD_S
from pyproxy.supervisor.forking import Forked, fork_child


class ConfigRefusedError(Exception):
    """The configuration is refused: the operator's fault. ``lines`` has one line a problem."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Keep the lines."""
        self.lines = tuple(lines)
        super().__init__("\n".join(self.lines))


class Loading:
    """One child at work; ``pidfd`` is readable when it has ended."""

    def __init__(
        self,
        file: str,
        flags: Sequence[str],
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """Start it. ``file`` is the configuration, ``flags`` are ``section.key=value``.

        ``prepare`` is called first in the child; it closes what is only the supervisor's.
        """
        self._result = os.memfd_create("pyproxy configuration", os.MFD_CLOEXEC)
        try:
            self._child: Forked = fork_child(
                lambda: _load(file, flags, self._result), prepare=prepare
            )
        except OSError:
            os.close(self._result)
            raise

    @property
    def pidfd(self) -> int:
        """Readable when the child has ended."""
        return self._child.pidfd

    def kill(self) -> None:
        """End the child; ``take`` then tells of it."""
        signal.pidfd_send_signal(self._child.pidfd, signal.SIGKILL)

    def take(self) -> Compiled:
        """Wait for the child's end and return what it made.

        Raises ``ConfigRefusedError`` for a configuration that is refused, or a child that died.
        """
        ended = os.waitid(os.P_PIDFD, self._child.pidfd, os.WEXITED)
        raw = os.pread(self._result, COMPILED_BYTES_MAX, 0)
        os.close(self._child.pidfd)
        os.close(self._result)
        if ended is None or ended.si_code != os.CLD_EXITED or ended.si_status != os.EX_OK:
            status = "unknown" if ended is None else ended.si_status
            line = f"the check of the configuration died ({status}); the lines above may say why"
            raise ConfigRefusedError([line])
        answer = json.loads(raw)
        if "problems" in answer:
            raise ConfigRefusedError(answer["problems"])
        return Compiled.from_json(answer["compiled"])


def _load(file: str, flags: Sequence[str], result: int) -> int:
    """Do the child's work: write the outcome as JSON."""
    from pyproxy.config.compile import compile_config
    from pyproxy.config.load import load
    from pyproxy.config.problems import ConfigError

    # The supervisor, which ends a child that takes too long, may itself have ended.
    signal.alarm(int(LOAD_S + KILL_AFTER_S))
    answer: dict[str, object]
    try:
        answer = {"compiled": compile_config(load(file, flags)).to_json()}
    except ConfigError as error:
        answer = {"problems": [str(problem) for problem in error.problems]}
    with os.fdopen(result, "wb") as output:
        output.write(json.dumps(answer).encode())
    return os.EX_OK
