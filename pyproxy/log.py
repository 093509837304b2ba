"""Log lines: one line an event, ``key=value``, on standard error.

Fields go in as ``extra={"fields": {...}}`` through ``log_event``. Never SQL text, parameters or
secrets: whoever logs decides that, here values are only escaped, since user names come from the
network. Next on the path: ``logsink.py``.
"""

from __future__ import annotations

import json
import logging
import re
import time
from typing import Any

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_PLAIN = re.compile(r"[!#-<>-~]+")  # printable ASCII without blank, quote and equals sign
_VALUE_CHARS_MAX = 2000  # a server's error text may be long; a log line must not be


def set_up_logging(form: str, level: str, handler: logging.Handler) -> None:
    """Send all log lines to one place in one form.

    ``form`` is ``logfmt``, ``json`` or ``text``; ``level`` the least level that is shown;
    ``handler`` the place (``logsink.py``).
    """
    handler.setFormatter(EventFormatter(form))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])


def log_event(logger: logging.Logger, level: int, event: str, **fields: Any) -> None:
    """Log one event with its fields; ``None`` values are left out."""
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": fields})


class EventFormatter(logging.Formatter):
    """Writes a record as logfmt, JSON or text."""

    def __init__(self, form: str) -> None:
        """Choose the form: ``logfmt``, ``json`` or ``text``."""
        super().__init__()
        self._write = {"logfmt": _logfmt, "json": _json, "text": _text}[form]

    def format(self, record: logging.LogRecord) -> str:
        """Write one line without its newline."""
        fields: dict[str, Any] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            "pid": record.process,
            "event": record.getMessage(),
        }
        extra = getattr(record, "fields", {})
        fields.update((key, _shorten(value)) for key, value in extra.items() if value is not None)
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return self._write(fields)


def _timestamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"


def _shorten(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= _VALUE_CHARS_MAX else text[:_VALUE_CHARS_MAX] + "…"


def _quote(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _logfmt(fields: dict[str, Any]) -> str:
    return " ".join(f"{key}={_quote(value)}" for key, value in fields.items())


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields)


def _text(fields: dict[str, Any]) -> str:
    head = f"{fields.pop('ts')} {fields.pop('level').upper():7} [{fields.pop('pid')}]"
    event = str(fields.pop("event"))
    shown = event if event.isprintable() else json.dumps(event)
    return " ".join([head, shown, *(f"{key}={_quote(value)}" for key, value in fields.items())])
