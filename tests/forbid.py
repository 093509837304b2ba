"""Forbids a process io_uring as container runtimes do: a seccomp filter answers EPERM.

Next on the path: `process/test_io.py`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x35, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_FIRST, _AFTER = 425, 428
"""io_uring_setup, io_uring_enter and io_uring_register have these numbers on every architecture."""
_PROGRAM = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (_LOAD, 0, 0, 0),  # the number of the system call
        (_JUMP_IF_AT_LEAST, 0, 2, _FIRST),
        (_JUMP_IF_AT_LEAST, 1, 0, _AFTER),
        (_RETURN, 0, 0, _ERROR | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    )
)


def forbid_io_uring() -> None:
    """Forbid it to this process and all its children, for good (seccomp(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(_PROGRAM)
    filter_ = struct.pack("@HP", len(_PROGRAM) // 8, ctypes.addressof(code))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _MODE_FILTER, filter_, 0, 0
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
