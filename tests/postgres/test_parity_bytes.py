"""The same byte script through the proxy and directly gives the same bytes.

Each script of the `scripts_*.py` files runs once directly and twice through the proxy (the second
time meets servers that know its statements). What may differ stands in `permitted.toml`, nowhere
else. Next on the path: `test_departures.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import Proxy
from tests.postgres import scripts_messages, scripts_prepared, scripts_startup
from tests.postgres.parity import KINDS, Rules, Run, Script, Transcript, permitted

SCRIPTS = scripts_startup.SCRIPTS + scripts_messages.SCRIPTS + scripts_prepared.SCRIPTS
SMALL_CACHE = [
    given
    for given in SCRIPTS
    if given.name.startswith(("T16", "T29", "T30", "T31", "T33 one protocol name"))
]


def names(scripts: list[Script] | tuple[Script, ...]) -> list[str]:
    """Return test names of scripts."""
    return [given.name.replace(" ", "_") for given in scripts]


@pytest.fixture(scope="module")
def front(module_proxy: Callable[..., Proxy], postgres: Postgres) -> Proxy:
    """Give a proxy with three servers that all scripts of one server version share."""
    return module_proxy(postgres, pool={"max_connections": 3})


@pytest.fixture(scope="module")
def small_cache(module_proxy: Callable[..., Proxy], postgres: Postgres) -> Proxy:
    """Give a proxy that keeps two prepared statements on its only server."""
    return module_proxy(postgres, pool={"max_connections": 1, "max_prepared_statements": 2})


def check(given: Script, server: Postgres, proxy: Proxy) -> None:
    """Run a script directly and twice through the proxy, and compare."""
    rules = Rules.covering(given, server.version)

    def through(where: Postgres | Proxy) -> Transcript:
        return Run(where.host, where.port, server, rules).run(given)

    expected = rules.transcript() or through(server)
    assert through(proxy) == expected, "first run through the proxy"
    assert through(proxy) == expected, "second run through the proxy"
    wait_until(
        lambda: not server.backends("state <> 'idle'"),
        "no server of the pool is left inside a transaction or a query",
    )


@pytest.mark.parametrize("given", SCRIPTS, ids=names(SCRIPTS))
def test_script_gives_the_bytes_of_the_server(
    given: Script, postgres: Postgres, front: Proxy
) -> None:
    """The proxy's client sees what a direct client sees."""
    check(given, postgres, front)


@pytest.mark.parametrize("given", SMALL_CACHE, ids=names(SMALL_CACHE))
def test_script_gives_the_bytes_of_the_server_with_a_cache_of_two(
    given: Script, postgres: Postgres, small_cache: Proxy
) -> None:
    """Eviction never hits a statement that a later message of the batch needs (T31)."""
    check(given, postgres, small_cache)


def test_each_permitted_difference_is_of_a_known_kind_and_has_a_reason() -> None:
    """Nothing but the listed kinds may be normalised, and each entry says why."""
    differences = permitted()
    assert len({d.name for d in differences}) == len(differences)
    for difference in differences:
        assert difference.kind in KINDS, difference.name
        assert len(difference.reason.split()) >= 8, f"{difference.name}: say why"


def test_each_permitted_difference_is_about_scripts_that_exist() -> None:
    """An entry without a script is a leftover, and a transcript is about one script only."""
    for difference in permitted():
        covered = [s for s in SCRIPTS for v in difference.versions if difference.covers(s, v)]
        assert covered, difference.name
        if difference.kind == "transcript":
            assert len({s.name for s in covered}) == 1, difference.name


def test_each_required_number_of_the_checklist_has_a_script() -> None:
    """The scripts cover the part of the checklist that bytes can show."""
    numbers = {given.name.split()[0] for given in SCRIPTS}
    wanted = {4, 5, 6, 7, *range(14, 24), *range(29, 34), 41, 42}
    assert numbers == {f"T{number}" for number in wanted}
    assert len(names(SCRIPTS)) == len(set(names(SCRIPTS)))
