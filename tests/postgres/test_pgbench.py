"""`pgbench -M prepared` with 600 clients on 40 servers: no error. RDS Proxy fails this publicly.

Next on the path: `../../bench/run.py`.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Callable

import pytest

from tests.fix_postgres import Postgres
from tests.fix_proxy import Proxy
from tests.postgres.load import pgbench, sampled, scale

CLIENTS = 600
SERVERS = 40


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("mode", "workers"), [("prepared", 1), ("extended", 1), ("simple", 1), ("prepared", 3)]
)
def test_pgbench_with_600_clients_on_40_servers_has_no_error(
    mode: str, workers: int, postgres15: Postgres, proxy: Callable[..., Proxy]
) -> None:
    """The simple-update script, every transaction of every client; the budget holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4 * CLIENTS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8 * CLIENTS), hard))
    made = pgbench(postgres15, postgres15.port, "-i", "-s", "1", "-q")
    assert made.returncode == 0, made.stderr
    front = proxy(postgres15, workers=workers, pool={"max_connections": SERVERS})
    transactions = max(5, int(100 * scale()))
    with sampled(postgres15, "usename = 'postgres'") as peak:
        done = pgbench(
            postgres15,
            front.port,
            *("-n", "-N", "-M", mode, "-c", str(CLIENTS), "-t", str(transactions)),
            # pgbench waits for PREPARE with its whole thread, also for the thread's clients that
            # are inside a transaction: only a thread for each client cannot block itself.
            *("-j", str(CLIENTS) if mode == "prepared" else "2"),
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not re.search("error|aborted|fatal", done.stderr, re.IGNORECASE), done.stderr[-3000:]
    total = CLIENTS * transactions
    assert f"actually processed: {total}/{total}" in done.stdout
    assert peak.most <= SERVERS
