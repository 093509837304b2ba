"""Gives root's rights up for good: after binding, before the first fork.

Not here: what is done with root's rights before (``run.py``). Next on the path: ``arbiter.py``.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable
from pathlib import Path

from pyproxy import exitcodes
from pyproxy.errors import OperatorError


def find_user(name: str) -> pwd.struct_passwd:
    """Look ``supervisor.user`` up, and make sure that this process may become it.

    Raises ``OperatorError`` (78): nobody has that name, or only root could change.
    """
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        text = f"supervisor.user: there is no user {name!r} on this machine; make it, or leave the"
        raise OperatorError(f"{text} setting out", exitcodes.CONFIG) from None
    if os.geteuid() not in (0, user.pw_uid):
        text = f"supervisor.user: only root can become {name!r}; start as root or as {name!r}"
        raise OperatorError(text, exitcodes.CONFIG)
    return user


def drop_privileges(user: pwd.struct_passwd, runtime_dir: str, files: Iterable[Path]) -> None:
    """Hand our files and sockets to a user, and become it.

    ``files`` are all of them; the runtime directory goes with them unless others keep files there,
    too. A process that is this user already only stays so. Raises ``OperatorError`` (78) if the
    system refuses.
    """
    if os.geteuid() == user.pw_uid:
        return
    try:
        own = set(files)
        directory = Path(runtime_dir)
        if set(directory.iterdir()) <= own:
            own.add(directory)
        for path in own:
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
        os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    except OSError as error:
        text = f"cannot become user {user.pw_name!r}: {error.strerror or error}; start as root with"
        raise OperatorError(f"{text} all its capabilities", exitcodes.CONFIG) from error


def describe() -> str:
    """Return ``user:group`` of this process, for the log."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        return f"{pwd.getpwuid(uid).pw_name}:{grp.getgrgid(gid).gr_name}"
    except KeyError:
        return f"{uid}:{gid}"
