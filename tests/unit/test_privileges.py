"""A user that this process cannot become is one line, before anything has begun.

Not here: becoming one (`../process/test_run.py`). Next on the path: `test_notify.py`.
"""

from __future__ import annotations

import os
import pwd

import pytest

from pyproxy.errors import OperatorError
from pyproxy.supervisor.privileges import find_user


def test_nobody_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OperatorError, match="there is no user 'no-such-user'") as caught:
        find_user("no-such-user")
    assert caught.value.exit_code == 78


def test_only_root_becomes_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam("daemon").pw_uid)
    with pytest.raises(OperatorError, match="only root can become 'nobody'") as caught:
        find_user("nobody")
    assert caught.value.exit_code == 78
    assert find_user("daemon").pw_name == "daemon"
