"""Takes things away from a process as container runtimes and service managers do.

System calls by a seccomp filter, which answers an error; the right to lock memory beyond the limit.
Made for `preexec_fn`: it cannot be undone. Next on the path: `process/test_io.py`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
from collections.abc import Collection

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_PR_CAPBSET_DROP, _CAP_IPC_LOCK = 24, 14
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
SETUP, ENTER, REGISTER = 425, 426, 427
"""io_uring_setup, io_uring_enter and io_uring_register have these numbers on every architecture."""


def forbid_io_uring(
    calls: Collection[int] = (SETUP, ENTER, REGISTER), error: int = errno.EPERM
) -> None:
    """Forbid these system calls to this process and all its children, for good (seccomp(2))."""
    steps = [(_LOAD, 0, 0, 0)]  # the number of the system call
    for left, call in enumerate(reversed(list(calls))):
        steps.insert(1, (_JUMP_IF_EQUAL, left + 1, 0, call))
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERROR | error)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    filter_ = struct.pack("@HP", len(steps), ctypes.addressof(code))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _MODE_FILTER, filter_)


def limit_locked_memory(size: int) -> None:
    """Let this process and its children lock no more than `size` bytes, also if root runs them."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (size, size))
    if os.geteuid() == 0:
        # The next program that root runs has every capability but those.
        _prctl(_PR_CAPBSET_DROP, _CAP_IPC_LOCK)


def _prctl(what: int, value: int, more: bytes | int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(what, value, more, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
