"""No client's session state is ever seen by another, and none is lost: random walks.

Sequences of the state walk run directly and through proxies with one to three servers; every answer
and every look at the session must be the same. `PYPROXY_SEED` names the first sequence,
`PYPROXY_SCALE` how many follow (0: none, so that a failing one replays alone). Next on the path:
`test_no_leak_tenants.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from tests.fix_postgres import Postgres
from tests.fix_proxy import Proxy
from tests.postgres import stateroom
from tests.postgres.load import scale, seed
from tests.postgres.stateroom import Fault, Room, Sequence
from tests.postgres.statewalk import Op, login, look
from tests.wire import query

Maker = Callable[..., Proxy]
# Of each version of the server; both together are 10,000 in a campaign.
SEQUENCES = 5_000
# Servers and workers of each room's proxy; a seed's rest by their number says its room.
ROOMS = ((1, 1), (2, 1), (3, 1), (2, 2), (1, 2))
# In fewer sequences than this some kind of statement may not come up.
MANY = 100
KINDS = {
    *("set", "set local", "reset", "reset all", "set_config", "set_config local", "special set"),
    *("discard all", "discard plans", "discard temp", "discard sequences", "driver reset"),
    *("role", "function", "update pg_settings", "begin", "commit", "rollback", "savepoint"),
    *("fault", "prepare", "temporary", "lock", "cursor", "listen", "sequence", "seed", "load"),
    *("read", "close", "look", "full look"),
}


@contextmanager
def rooms(postgres: Postgres, proxy: Maker, numbers: set[int]) -> Iterator[dict[int, Room]]:
    """Give rooms with proxies of their own, by number."""
    made: dict[int, Room] = {}
    try:
        for number in sorted(numbers):
            servers, workers = ROOMS[number]
            front = proxy(postgres, workers=workers, pool={"max_connections": servers})
            made[number] = Room(postgres, front, f"walk_{number}", servers)
        yield made
    finally:
        for room in made.values():
            room.close()


def walk(room: Room, seeds: list[int]) -> Fault | None:
    """Run sequences until one fails."""
    for each in seeds:
        fault = room.run(room.make(each))
        if fault is not None:
            return fault
    return None


def report(room: Room, fault: Fault) -> str:
    """Return what is known of a fault, with a smaller sequence that fails as well."""
    smaller, is_alone = room.shrink(fault)
    which = f"sequence {fault.sequence.seed} on {room.servers} servers fails"
    if not is_alone:
        return f"{which}, but not by itself on clean servers\n{fault.told()}"
    replay = f"PYPROXY_SEED={fault.sequence.seed} PYPROXY_SCALE=0 replays it alone"
    return f"{which}; {replay}\n{smaller.told()}"


@pytest.mark.timeout(3600)
def test_clients_that_share_servers_see_what_they_would_see_alone(
    postgres: Postgres, proxy: Maker
) -> None:
    """Any statements in any interleaving: each answer is that of a connection of one's own."""
    start = seed()
    seeds = range(start, start + max(1, int(SEQUENCES * scale())))
    shares = {n: [s for s in seeds if s % len(ROOMS) == n] for n in range(len(ROOMS))}
    used = {n for n, share in shares.items() if share}
    with rooms(postgres, proxy, used) as made, ThreadPoolExecutor(len(used)) as pool:
        faults = dict(zip(used, pool.map(lambda n: walk(made[n], shares[n]), used), strict=True))
        told = [report(made[n], fault) for n, fault in faults.items() if fault is not None]
        kinds = sum((Counter(room.kinds) for room in made.values()), Counter())
    if told:
        pytest.fail("\n\n".join(told), pytrace=False)
    assert len(seeds) < MANY or kinds.keys() >= KINDS, KINDS - kinds.keys()


def test_a_leak_is_found_and_made_small(
    postgres15: Postgres, proxy: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge can judge: a function that sets something unseen, as functions are trusted."""
    # The order of the steps counts here, so a slow answer is waited for.
    monkeypatch.setattr(stateroom, "PATIENCE_S", 5.0)
    unseen = "SELECT set_unseen()"
    with rooms(postgres15, proxy, {0}) as made:
        (room,) = made.values()
        for database in (room.alone, room.shared):
            with closing(postgres15.connect(database=database)) as connection:
                connection.cursor().execute(UNSEEN)
        texts = ("SELECT 1", "SET LOCAL work_mem = '5MB'", unseen, "SELECT 2", "BEGIN; ROLLBACK")
        ops = [login(slot, room.alone, {"user": "postgres"}) for slot in range(2)]
        ops += [Op(0, "ask", sql, query(sql)) for sql in texts]
        ops += [look(1), look(0)]
        fault = room.run(Sequence(1, ops, room.direct(ops)))
        assert fault is not None
        assert fault.sequence.ops[fault.index] == look(1)
        smaller, is_alone = room.shrink(fault)
        assert is_alone
        titles = [op.title for op in smaller.sequence.ops]
        assert titles == [*([ops[0].title] * 2), unseen, "full look"]
        assert "work_mem=5432" in smaller.told()


UNSEEN = """CREATE FUNCTION set_unseen() RETURNS text LANGUAGE sql AS
$$SELECT set_config('work_mem', '5432', false)$$"""
