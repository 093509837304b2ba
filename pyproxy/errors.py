"""Errors that end a command with one line for the operator and an exit code.

Not here: what is wrong inside a configuration (``config/problems.py``). Next on the path:
``cli.py``.
"""

from __future__ import annotations


class OperatorError(Exception):
    """Something that the operator has to set right; the message says what, why and what to do."""

    def __init__(self, message: str, exit_code: int) -> None:
        """Keep the line and the exit code that the command ends with."""
        super().__init__(message)
        self.exit_code = exit_code
