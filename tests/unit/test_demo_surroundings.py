"""What the demo takes from its surroundings: variables, open files, PostgreSQL's folders.

The whole demo: `../demo/test_demo.py`. Next on the path: `test_verdict.py`.
"""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from pyproxy import exitcodes
from pyproxy.demo import binaries
from pyproxy.demo.surroundings import FILES_SPARE, check_open_files, forget_foreign_settings
from pyproxy.errors import OperatorError


def test_what_means_other_servers_is_forgotten_and_the_rest_is_kept() -> None:
    kept = {"PATH": "/bin", "HOME": "/root", "PYPROXY_PG_BINDIR": "/opt/pg", "LANG": "C"}
    foreign = {"PGHOSTADDR": "10.0.0.1", "PGPASSWORD": "x", "PYPROXY__LOG__LEVEL": "error"}
    environment = kept | foreign | {"NOTIFY_SOCKET": "/run/systemd/notify"}
    forget_foreign_settings(environment)
    assert environment == kept


@pytest.mark.parametrize(
    ("limits", "raised"),
    [
        ((256, 4096), (1000 + FILES_SPARE, 4096)),
        ((256, resource.RLIM_INFINITY), (1000 + FILES_SPARE, resource.RLIM_INFINITY)),
        ((4096, 4096), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_the_clients_need(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], raised: tuple[int, int] | None
) -> None:
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: done.append(given))
    check_open_files(1000)
    assert done == ([raised] if raised else [])


def test_more_clients_than_files_are_refused_with_a_number_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 512))
    with pytest.raises(OperatorError, match=f"--clients {512 - FILES_SPARE}$") as refused:
        check_open_files(1000)
    assert refused.value.exit_code == exitcodes.UNAVAILABLE
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    check_open_files(512 - FILES_SPARE)


def test_the_newest_programs_of_the_distribution_come_first_whatever_their_folders_are_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setattr(binaries, "DISTRIBUTION", tmp_path)
    monkeypatch.setattr(binaries, "server_account", dict)
    for version in ("9.6", "15", "17beta1", "common"):
        (tmp_path / version / "bin").mkdir(parents=True)
        for name in binaries.NEEDED:
            (tmp_path / version / "bin" / name).touch(0o755)
    assert binaries.find_binaries(tmp_path, {}) == tmp_path / "17beta1" / "bin"


def test_programs_that_the_databases_account_cannot_reach_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(binaries, "server_account", lambda: {"user": 1})
    for name in binaries.NEEDED:
        (tmp_path / name).touch(0o755)
    tmp_path.chmod(0o700)
    with pytest.raises(OperatorError, match=f"no other account can enter {tmp_path}"):
        binaries.find_binaries(tmp_path, {"PYPROXY_PG_BINDIR": str(tmp_path)})
