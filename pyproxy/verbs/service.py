"""Finds a running service and asks it: one JSON line to one of its sockets, one back.

Imports little, so that a verb answers at once. Not here: what is shown (``tables.py``), the other
end (``../supervisor/control.py``, ``../admin/main.py``). Next on the path: ``tables.py``.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyproxy import exitcodes
from pyproxy.errors import OperatorError
from pyproxy.limits import ANSWER_BYTES_MAX, ANSWER_S

CONTROL = "control.sock"
"""Commands; the supervisor answers."""
STATS = "stats.sock"
"""Rows and figures; the admin process answers."""
_TIMEVAL = struct.pack("ll", int(ANSWER_S), 0)  # struct timeval


def find_runtime_dir(
    runtime_dir: str | None, file: str | None, environment: Mapping[str, str]
) -> Path:
    """Return the directory of the service that is meant.

    In this order: ``runtime_dir`` as given, that of the configuration ``file`` as given,
    ``$PYPROXY_RUNTIME_DIR``, that of ``$PYPROXY_CONFIG``, the default. Raises ``OperatorError``
    (78) for a file that cannot be read.
    """
    from pyproxy.config.sources import DEFAULT_RUNTIME_DIR

    if runtime_dir:
        return Path(runtime_dir)
    if file is None and environment.get("PYPROXY_RUNTIME_DIR"):
        return Path(environment["PYPROXY_RUNTIME_DIR"])
    file = file or environment.get("PYPROXY_CONFIG")
    return _of_file(Path(file), environment) if file else Path(DEFAULT_RUNTIME_DIR)


def ask(runtime_dir: Path, name: str, request: dict[str, Any], wait_s: float = 0.0) -> Any:
    """Send a request to one socket of a service and return its answer.

    ``wait_s`` is the time that the request itself may take, in seconds. Raises ``OperatorError``
    (69) if nobody answers.
    """
    path = runtime_dir / name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            # A blocking connect waits for room in a full queue; one with a timeout would not.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL)
            connection.connect(str(path))
            connection.settimeout(ANSWER_S)
            connection.sendall(json.dumps(request).encode() + b"\n")
            connection.settimeout(wait_s + ANSWER_S)
            raw = _read_line(connection)
        return json.loads(raw)
    except (OSError, ValueError) as error:
        raise _unreachable(path, error) from error


def _read_line(connection: socket.socket) -> bytes:
    parts: list[bytes] = []
    size = 0
    while size < ANSWER_BYTES_MAX:
        part = connection.recv(1 << 20)
        if not part:
            raise ConnectionResetError(0, "the service ended the connection without an answer")
        parts.append(part)
        size += len(part)
        if part.endswith(b"\n"):
            break
    return b"".join(parts)


def _unreachable(path: Path, error: Exception) -> OperatorError:
    if isinstance(error, PermissionError):
        hint = "only root and the service's own user may ask"
    elif isinstance(error, TimeoutError | BlockingIOError):
        hint = "it may be stopped or busy; try again, or look at its log"
    elif isinstance(error, FileNotFoundError | ConnectionRefusedError):
        hint = "is it running? `pyproxy run` starts it; --runtime-dir or -c say which one is meant"
    else:
        hint = "look at its log"
    reason = getattr(error, "strerror", None) or str(error) or "no answer"
    text = f"no service answers on {path}: {reason}; {hint}"
    return OperatorError(text, exitcodes.UNAVAILABLE)


def _of_file(file: Path, environment: Mapping[str, str]) -> Path:
    """Read ``supervisor.runtime_dir`` as the service would, without checking anything else."""
    from pyproxy.config.problems import ConfigError
    from pyproxy.config.sources import DEFAULT_RUNTIME_DIR, read_sources

    try:
        section = read_sources(file, environment).data.get("supervisor", {})
    except ConfigError as error:
        raise OperatorError(str(error.problems[0]), exitcodes.CONFIG) from error
    found = section.get("runtime_dir") if isinstance(section, dict) else None
    found = found if isinstance(found, str) else DEFAULT_RUNTIME_DIR
    return Path(os.path.abspath(file.parent / found))  # noqa: PTH100 - links stay as written
