"""Where settings come from, who wins, and on which line each stands.

Not here: what is wrong with them (`test_config_check.py`). Next on the path:
`test_config_compile.py`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.config.load import load
from pyproxy.config.locate import key_lines
from pyproxy.config.problems import ConfigError
from pyproxy.config.sources import read_sources
from pyproxy.config.units import format_duration, parse_duration, parse_size
from tests.unit.test_config_check import GOOD, write


def test_flags_beat_environment_beats_conf_d_beats_file_beats_default(tmp_path: Path) -> None:
    file = write(tmp_path, "[log]\nlevel = 'error'\nformat = 'text'\n" + GOOD)
    extra = tmp_path / "conf.d"
    extra.mkdir()
    (extra / "10-log.toml").write_text("[log]\nlevel = 'warning'\n")
    assert load(file, environment={}).settings.log.level == "warning"
    environment = {"PYPROXY__LOG__LEVEL": "info"}
    loaded = load(file, environment=environment)
    assert (loaded.settings.log.level, loaded.settings.log.format) == ("info", "text")
    assert load(file, ["log.level=debug"], environment).settings.log.level == "debug"
    assert loaded.settings.supervisor.orphan_timeout == 60_000


def test_a_proxy_in_conf_d_merges_with_the_one_of_its_name(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    (tmp_path / "conf.d").mkdir()
    part = tmp_path / "conf.d" / "pool.toml"
    part.write_text('[[proxy]]\nname = "orders"\npool.max_connections = 7\npool.idle_timeout = 1\n')
    with pytest.raises(ConfigError) as caught:
        load(file, environment={})
    (problem,) = caught.value.problems
    assert (problem.origin.source, problem.origin.line) == (str(part), 4)
    part.write_text('[[proxy]]\nname = "orders"\npool.max_connections = 7\n')
    (proxy,) = load(file, environment={}).settings.proxy
    assert proxy.pool.max_connections == 7
    assert proxy.target[0].host == "127.0.0.1"


def test_a_later_name_in_conf_d_wins(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "2.toml").write_text("[log]\nlevel = 'error'\n")
    (tmp_path / "conf.d" / "1.toml").write_text("[log]\nlevel = 'debug'\n")
    assert load(file, environment={}).settings.log.level == "error"


def test_a_proxy_is_reached_by_number_or_name_from_environment_and_flags(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    environment = {"PYPROXY__PROXY__ORDERS__POOL__MAX_CONNECTIONS": "9"}
    flags = ["proxy.0.max_clients=11", 'proxy.orders.allow=["10.0.0.0/8"]']
    (proxy,) = load(file, flags, environment).settings.proxy
    assert (proxy.pool.max_connections, proxy.max_clients) == (9, 11)
    assert proxy.allow == ["10.0.0.0/8"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("log.level", "must be written as section.key=value"),
        ("proxy.7.name=x", "names no element"),
        ("proxy.nobody.name=x", "names no element"),
        ("supervisor.runtime_dir.x=y", "is a value, not a section"),
        ("log.levle=info", "did you mean 'level'?"),
    ],
)
def test_a_flag_that_names_nothing_is_told(tmp_path: Path, flag: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, GOOD), [flag], {})
    (problem,) = caught.value.problems
    assert message in str(problem)
    assert str(problem).startswith("flag --set ")


def test_a_bad_variable_is_named_as_the_origin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^environment PYPROXY__LOG__LEVEL: log\.level: must be"):
        load(write(tmp_path, GOOD), environment={"PYPROXY__LOG__LEVEL": "loud"})


def test_every_key_of_every_notation_is_found_on_its_line() -> None:
    text = '''\
top = 1 # comment = 2
"quoted.key" = """
not = "a key"
""" # after
[a.b]
c.d = { e = 1, f = [1, { g = 2 }] }
list = [
  "x", # one
  'y]',
  [1, 2],
]
[[t]]
k = 'it\\'
[[t]]
k = "a \\" b"
  [t.sub]
  z = 1979-05-27T07:32:00Z
[[t.inner]]
q = true
'''
    lines = key_lines(text)
    assert lines[("top",)] == 1
    assert lines[("quoted.key",)] == 2
    assert ("not",) not in lines
    assert lines[("a", "b", "c", "d", "f", 1, "g")] == 6
    assert (lines[("a", "b", "list", 0)], lines[("a", "b", "list", 1)]) == (8, 9)
    assert (lines[("t", 0, "k")], lines[("t", 1, "k")]) == (13, 15)
    assert lines[("t", 1, "sub", "z")] == 17
    assert lines[("t", 1, "inner", 0, "q")] == 19


def paths_of(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {path} if path else set()
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= paths_of(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found |= paths_of(inner, (*path, index))
    return found


KEYS = st.text("abc-_", min_size=1, max_size=4)
TEXTS = st.text("ab#[]{}=,.'\" \n\\", max_size=12)
VALUES = st.recursive(
    st.integers(0, 99) | st.booleans() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ",\n".join(toml_value(inner) for inner in value) + "]"
    return "{" + ", ".join(f"{key} = {toml_value(inner)}" for key, inner in value.items()) + "}"


@settings(deadline=None)
@given(st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=3), max_size=3))
def test_the_walker_finds_exactly_the_paths_that_tomllib_reads(
    document: dict[str, dict[str, Any]],
) -> None:
    text = "".join(
        f"[{name}]\n"
        + "".join(f"{key} = {toml_value(value)} # c\n" for key, value in table.items())
        for name, table in document.items()
    )
    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # an inline table over several lines, which this TOML does not have
    assert set(key_lines(text)) == paths_of(read)


@pytest.mark.parametrize(
    ("text", "ms"),
    [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("1.5h", 5_400_000), ("1h 30m", 5_400_000)],
)
def test_times_are_read_in_human_units(text: str, ms: int) -> None:
    assert parse_duration(text) == ms


@given(st.integers(0, 10**11))
def test_a_written_time_reads_back(ms: int) -> None:
    assert parse_duration(format_duration(ms)) == ms


@pytest.mark.parametrize("text", ["", "5", "s", "5 weeks", "-1s", "1s x"])
def test_what_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


def test_sizes_are_read_in_human_units() -> None:
    assert [parse_size(text) for text in ("4096", "64MiB", "1 kB")] == [4096, 64 << 20, 1000]
    with pytest.raises(ValueError):
        parse_size("64 MBit")


def test_a_file_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    file = tmp_path / "pyproxy.toml"
    file.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_sources(file, {})
