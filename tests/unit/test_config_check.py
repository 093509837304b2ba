"""Every kind of bad configuration gets a clear line with its place, and all of them at once.

Not here: where values come from (`test_config_sources.py`). Next on the path:
`test_config_sources.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pyproxy.config.load import Loaded, load
from pyproxy.config.problems import ConfigError

VERIFIER = (
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ=="
    "$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)
GOOD = """\
[supervisor]
runtime_dir = "run"

[[proxy]]
name = "orders"

  [proxy.pool]
  mode = "transaction"

  [[proxy.endpoint]]
  listen = ["127.0.0.1:6432"]

  [[proxy.auth]]
  user = "app"
  secret = "file:users.toml"

  [[proxy.target]]
  host = "127.0.0.1"
"""


def write(folder: Path, text: str, secret: str = '[app]\npassword = "x"\n') -> Path:
    file = folder / "pyproxy.toml"
    file.write_text(text)
    users = folder / "users.toml"
    users.write_text(secret)
    users.chmod(0o600)
    return file


def check(folder: Path, text: str, secret: str = '[app]\npassword = "x"\n') -> list[str]:
    """Return the problems of a configuration without the folder's name in them."""
    try:
        load(write(folder, text, secret), environment={})
    except ConfigError as error:
        return [str(problem).replace(f"{folder}/", "") for problem in error.problems]
    return []


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_a_good_configuration_has_no_problems(tmp_path: Path) -> None:
    loaded: Loaded = load(write(tmp_path, GOOD), environment={})
    assert loaded.settings.proxy[0].pool.connection_borrow_timeout == 120_000
    assert loaded.logins[0].password == "x"
    assert loaded.remarks == ()


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ('mode = "transaction"', "mod = 1", "proxy[0].pool.mod", "unknown key 'mod'; did you mean"),
        ('mode = "transaction"', 'mode = "trans"', "proxy[0].pool.mode", "did you mean 'trans"),
        ('mode = "transaction"', 'max_connections = "9"', "max_connections", "a whole number"),
        ('mode = "transaction"', "max_connections = true", "max_connections", "a whole number"),
        ('mode = "transaction"', "max_connections = 0", "max_connections", "at least 1"),
        ('mode = "transaction"', "idle_timeout = 30", "idle_timeout", "a time in quotes"),
        ('mode = "transaction"', 'idle_timeout = "3 y"', "idle_timeout", "is not a time"),
        (
            'mode = "transaction"',
            'connection_borrow_timeout = "301s"',
            "connection_borrow_timeout",
            "out of range: 0s to 300s",
        ),
        (
            'mode = "transaction"',
            "max_connections = 5\nmax_connections_percent = 50",
            "max_connections",
            "not both",
        ),
        (
            'mode = "transaction"',
            "max_connections = 5\nmin_connections = 6",
            "proxy[0].pool",
            "6 is above max_connections = 5",
        ),
        (
            'mode = "transaction"',
            "max_connections_percent = 40\nmax_idle_connections_percent = 50",
            "proxy[0].pool",
            "50 is above max_connections_percent = 40",
        ),
        ('mode = "transaction"', 'mode = "statement"', "pool.mode", "not available yet"),
        ('mode = "transaction"', 'routines = "verify"', "pool.routines", "not available yet"),
        ('name = "orders"', 'name = ""', "proxy[0].name", "at least 1 character"),
        ('name = "orders"', 'name = "o"\nengine = "mysql"', "engine", "not available yet: mysql"),
        ('name = "orders"', 'name = "o"\nrequire_tls = true', "proxy[0]", "not available yet"),
        ('name = "orders"', 'name = "o"\nallow = ["10.0.0.1/8"]', "proxy[0]", "host bits set"),
        ('name = "orders"', 'engine = "postgresql"', "proxy[0].name", "is required"),
        ('user = "app"', 'user = "app"\nscheme = "secrets"', "auth[0]", "not available yet"),
        ('user = "app"', 'user = "app"\niam = "required"', "auth[0]", "not available yet"),
        ('user = "app"', 'user = "app"\nclient_auth = "native"', "auth[0]", "not available yet"),
        ('user = "app"', 'user = "*"', "proxy[0].auth[0].user", "needs scheme auth_query"),
        ('user = "app"', 'user = "ap"\n', "auth[0].secret", "no table [ap]; did you mean 'app'?"),
        ('"file:users.toml"', '"file:none.toml"', "auth[0].secret", "No such file"),
        ('"file:users.toml"', '"arn:aws:x"', "auth[0].secret", "not available yet"),
        ('"file:users.toml"', '"env:NOPE"', "auth[0].secret", "NOPE is not set"),
        ('"file:users.toml"', '""', "auth[0].secret", "scheme file needs one"),
        ("127.0.0.1:6432", "127.0.0.1", "listen[0]", "is not an address"),
        ("127.0.0.1:6432", "db.example:1", "listen[0]", "names are not resolved"),
        ("127.0.0.1:6432", "127.0.0.1:0", "listen[0]", "out of range"),
        ("127.0.0.1:6432", "unix:", "listen[0]", "names no socket file"),
        ("127.0.0.1:6432", "unix:/" + "x" * 120, "listen[0]", "longer than 107 bytes"),
        ("127.0.0.1:6432", "8.8.8.8:6432", "listen[0]", "allow_public = true and require_tls"),
        ("127.0.0.1:6432", "127.0.0.1:9187", "listen[0]", "overlaps admin.http"),
        ('["127.0.0.1:6432"]', "[7]", "listen", "must be a string"),
        ('["127.0.0.1:6432"]', '["*:1", "127.0.0.1:1"]', "listen[1]", "overlaps"),
        ('host = "127.0.0.1"', 'host = "db.example"', "target[0].host", "not available yet: tls"),
        ('host = "127.0.0.1"', 'host = "::1"\ntls = "require"', "target[0]", "not available yet"),
        ('host = "127.0.0.1"', "port = 1", "target[0].host", "is required"),
        ('runtime_dir = "run"', "workers = 65", "supervisor.workers", "at most 64"),
        ("[supervisor]", "[superviser]", "superviser", "did you mean 'supervisor'?"),
    ],
)
def test_bad_input_names_the_place_and_the_way_out(
    tmp_path: Path, old: str, new: str, place: str, message: str
) -> None:
    text = GOOD.replace(old, new)
    problems = check(tmp_path, text)
    assert len(problems) == 1, problems
    assert place in problems[0]
    assert message in problems[0]
    line = int(problems[0].split(":")[1])
    first = line_of(text, new.partition("\n")[0])
    assert 0 <= line - first <= new.count("\n") + 1 or "is required" in message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = (
        GOOD.replace('mode = "transaction"', 'mode = "statement"\n  idle_timeout = 5')
        .replace("127.0.0.1:6432", "8.8.8.8:6432")
        .replace('name = "orders"', 'nam = "orders"')
    )
    problems = check(tmp_path, text, '[app]\npasword = "x"\n')
    places = [problem.split(": ")[1] for problem in problems]
    assert places == [
        "proxy[0].name",
        "proxy[0].nam",
        "proxy[0].pool.mode",
        "proxy[0].pool.idle_timeout",
        "proxy[0].endpoint[0].listen[0]",
        "app.password",
        "app.pasword",
    ]


def test_trust_is_for_loopback_and_unix_listeners_only(tmp_path: Path) -> None:
    trust = GOOD.replace('user = "app"', 'user = "app"\n  scheme = "trust"')
    assert check(tmp_path, trust) == []
    assert check(tmp_path, trust.replace("127.0.0.1:6432", "unix:run/.s.PGSQL.6432")) == []
    (problem,) = check(tmp_path, trust.replace("127.0.0.1:6432", "10.0.0.1:6432"))
    assert "10.0.0.1:6432 is not loopback, but 'app' needs no proof" in problem


def test_a_wildcard_listener_needs_private_networks_only(tmp_path: Path) -> None:
    wild = GOOD.replace("127.0.0.1:6432", "0.0.0.0:6432")
    assert check(tmp_path, wild) == []
    public = wild.replace('name = "orders"', 'name = "orders"\nallow = ["0.0.0.0/0"]')
    (problem,) = check(tmp_path, public)
    assert "takes every address while allow names a public network" in problem


@pytest.mark.parametrize(
    ("secret", "line", "message"),
    [
        ('[app]\npassword = ""\n', 2, "must be a string that is not empty"),
        ("[app]\npassword = 7\n", 2, "must be a string that is not empty"),
        ('[app]\nverifier = "SCRAM-SHA-1$x"\n', 2, "is not SCRAM-SHA-256$"),
        (f'[app]\nverifier = "{VERIFIER.replace("4096", "900000")}"\n', 2, "iteration count"),
        (f'[app]\nverifier = "{VERIFIER.replace("wfPL", "")}"\n', 2, "not 32 bytes long"),
        ('# no login\n[app]\nserver_password = "x"\n', 2, "needs password or verifier"),
        ("[app\n", 1, "is not TOML"),
    ],
)
def test_bad_secrets_are_told_with_their_line(
    tmp_path: Path, secret: str, line: int, message: str
) -> None:
    (problem,) = check(tmp_path, GOOD, secret)
    assert problem.startswith(f"users.toml:{line}:")
    assert message in problem


def test_problems_and_reprs_never_show_a_secret(tmp_path: Path) -> None:
    secret = '[app]\npassword = "hunter2"\nverifier = "hunter2"\nserver_user = ""\n'
    assert "hunter2" not in "".join(check(tmp_path, GOOD, secret))
    loaded = load(write(tmp_path, GOOD, '[app]\npassword = "hunter2"\n'), environment={})
    assert "hunter2" not in repr(loaded)


def test_a_secret_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    (tmp_path / "users.toml").chmod(0o640)
    with pytest.raises(ConfigError, match=r"readable by others \(mode 0640\); chmod 600 it"):
        load(file, environment={})


def test_a_verifier_and_a_server_password_are_a_login(tmp_path: Path) -> None:
    secret = f'[app]\nverifier = "{VERIFIER}"\nserver_password = "s"\nserver_user = "rw"\n'
    loaded = load(write(tmp_path, GOOD, secret), environment={})
    login = loaded.logins[0]
    assert (login.verifier, login.server_password, login.server_user) == (VERIFIER, "s", "rw")


def test_md5_needs_an_md5_hash_or_a_password(tmp_path: Path) -> None:
    text = GOOD.replace('user = "app"', 'user = "app"\n  client_auth = "md5"')
    assert check(tmp_path, text, f'[app]\nmd5 = "{"0" * 32}"\n') == []
    assert check(tmp_path, text, f'[app]\nmd5 = "md5{"0" * 32}"\n') == []
    assert "32 hexadecimal" in check(tmp_path, text, '[app]\nmd5 = "xyz"\n')[0]
    assert "needs password or md5" in check(tmp_path, text, f'[app]\nverifier = "{VERIFIER}"\n')[0]


def test_a_second_proxy_is_refused_clearly(tmp_path: Path) -> None:
    second = GOOD[GOOD.index("[[proxy]]") :].replace("orders", "b").replace("6432", "6433")
    (problem,) = check(tmp_path, GOOD + second)
    assert "not available yet: a second [[proxy]]" in problem


def test_settings_without_effect_are_accepted_with_a_remark(tmp_path: Path) -> None:
    text = GOOD + '\n[telemetry]\notlp_endpoint = "http://127.0.0.1:4318"\n'
    loaded = load(write(tmp_path, text), environment={})
    (remark,) = loaded.remarks
    assert "telemetry.otlp_endpoint: has no effect before telemetry" in remark


def test_an_unreadable_file_and_broken_toml_are_one_line_each(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load(tmp_path / "none.toml", environment={})
    (problem,) = check(tmp_path, GOOD.replace("[[proxy]]", "[[proxy]"))
    assert problem.startswith("pyproxy.toml:4: is not TOML")


@pytest.mark.parametrize("proxy", ["proxy = 7", 'proxy = ["x"]', "[proxy]\nname = 'x'"])
def test_a_proxy_of_the_wrong_shape_is_told(tmp_path: Path, proxy: str) -> None:
    problems = check(tmp_path, proxy + "\n")
    assert problems
    assert all("must be a" in problem for problem in problems)
