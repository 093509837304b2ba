"""The driver matrix: each driver with its defaults, 50 clients on 5 servers, no error.

Also the baseline of pins: what a driver pins is exactly what its row in `docs/drivers.md` says.
Next on the path: `python/contract.py`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from tests.drivers import builds
from tests.fix_postgres import PASSWORDS, Postgres, Servers
from tests.fix_proxy import Proxy
from tests.postgres.load import sampled

STEPS = ("connect", "prepared", "pipeline", "copy", "transaction", "error", "cancel")
SERVERS = 5
CLIENTS = 50
COPIED_ROWS = 100
PROGRAM_S = 90
TEST_S = 600  # the first one of a language builds, and may fetch packages
PREFIX = "matrix"
UNSUPPORTED = "—"
HEAD = ("driver", "version", "pool", *STEPS)


@dataclass(frozen=True)
class Driver:
    """One driver: how its program is built and started; `rounds` is less where logins are slow."""

    name: str
    command: Callable[[], builds.Command]
    versions: tuple[str, ...] = ("pg15",)
    rounds: int = 2


DRIVERS = (
    Driver("psycopg 3", builds.python("psycopg3")),
    Driver("asyncpg", builds.python("asyncpg_native"), ("pg15", "pg18")),
    Driver("pg8000", builds.python("pg8000_dbapi"), rounds=1),
    Driver("SQLAlchemy, psycopg2", builds.python("sqlalchemy_sync")),
    Driver("SQLAlchemy, asyncpg", builds.python("sqlalchemy_async"), rounds=1),
    Driver("Django", builds.python("django_orm")),
    Driver("node pg", builds.node("pg.mjs")),
    Driver("postgres.js", builds.node("postgres.mjs")),
    Driver("Go pgx", builds.go("pgx"), ("pg15", "pg18")),
    Driver("Go lib/pq", builds.go("pq")),
    Driver("pgjdbc", builds.java),
    Driver("tokio-postgres", builds.rust),
    Driver("psql", builds.python("psql"), rounds=1),
)
RUNS = [
    pytest.param(driver, version, id=re.sub(r"\W+", "-", f"{driver.name} {version}"))
    for driver in DRIVERS
    for version in driver.versions
]


@cache
def documented() -> dict[str, dict[str, str]]:
    """Return the rows of the table in `docs/drivers.md`, by driver and column."""
    rows = {}
    for line in (builds.ROOT / "docs" / "drivers.md").read_text().splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == len(HEAD):
            rows[cells[0]] = dict(zip(HEAD, cells, strict=True))
    return rows


def database(step: str) -> str:
    """Return the name of a step's database."""
    return f"{PREFIX}_{step}"


def prepare(server: Postgres) -> None:
    """Make the databases of the steps, or empty them; `app` works in them."""
    there = {name for (name,) in server.sql("SELECT datname FROM pg_database")}
    for step in STEPS:
        name = database(step)
        if name in there:
            direct(server, step, "TRUNCATE copied, kept")
            continue
        server.sql(f"CREATE DATABASE {name}")
        direct(
            server,
            step,
            "CREATE TABLE copied (tag int, n int, note text);"
            "CREATE TABLE kept (tag int, part text);"
            "GRANT ALL ON copied, kept TO app",
        )


def direct(server: Postgres, step: str, text: str) -> Any:
    """Run SQL without the proxy in a step's database; return the first row's value."""
    connection = server.connect(database=database(step))
    try:
        with connection.cursor() as cursor:
            cursor.execute(text)
            return (cursor.fetchone() or (None,))[0] if cursor.description else None
    finally:
        connection.close()


def run_program(command: builds.Command, rounds: int, server: Postgres, front: Proxy) -> str:
    """Run a driver's program through the proxy, with a deadline, and return what it prints."""
    given = {
        "PGHOST": front.host,
        "PGPORT": str(front.port),
        "PGUSER": "app",
        "PGPASSWORD": PASSWORDS["app"],
        "PGDATABASE": PREFIX,
        "PSQL": str(server.binaries / "psql"),
        "DRIVER_CLIENTS": str(CLIENTS),
        "DRIVER_ROUNDS": str(rounds),
    }
    process = subprocess.Popen(
        command,
        cwd=builds.ROOT,
        env=os.environ | given,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=PROGRAM_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        clients = front.run_verb("clients").stdout
        pytest.fail(f"not within {PROGRAM_S} s: {command}\n{printed[-2000:]}\n{clients}")
    assert process.returncode == 0, printed[-4000:]
    return printed


def pins(log: str) -> dict[str, set[str]]:
    """Return the reasons of the pins in a log, by step."""
    found: dict[str, set[str]] = {step: set() for step in STEPS}
    for pool, reason in re.findall(r"event=pinned .*?pool=\S+@(\S+) reason=(\S+)", log):
        found[pool.removeprefix(f"{PREFIX}_")].add(reason)
    return found


def expected_pins(row: dict[str, str]) -> dict[str, set[str]]:
    """Return what the row of a driver says about pins, by step."""
    said = {step: re.split(r"`?, `?", row[step]) for step in STEPS}
    return {step: set(words) - {"none", UNSUPPORTED} for step, words in said.items()}


def check_steps(printed: str, row: dict[str, str], rounds: int) -> None:
    """Check what a program has printed: who it is, each step once, all units done, no error."""
    who, *steps = [json.loads(line) for line in printed.splitlines()]
    assert who == {name: row[name] for name in ("driver", "version", "pool")}
    assert [step["step"] for step in steps] == list(STEPS)
    wanted: list[dict[str, Any]] = [
        {"step": step, "unsupported": True}
        if row[step] == UNSUPPORTED
        else {"step": step, "done": CLIENTS * rounds, "errors": []}
        for step in STEPS
    ]
    got = [{name: step[name] for name in step if name != "seconds"} for step in steps]
    for step in got:
        step.update({"unsupported": True} if "unsupported" in step else {})
    assert got == wanted


@pytest.mark.timeout(TEST_S)
@pytest.mark.parametrize(("driver", "version"), RUNS)
def test_50_clients_of_a_driver_on_5_servers_have_no_error_and_pin_as_documented(
    driver: Driver, version: str, servers: Servers, proxy: Callable[..., Proxy]
) -> None:
    """All units of all steps are done, the budget holds, the pins are those of the table."""
    row = documented()[driver.name]
    command = driver.command()
    server = servers.get(version)
    prepare(server)
    front = proxy(server, pool={"max_connections": SERVERS}, workers=2)
    with sampled(server, "usename = 'app'") as peak:
        printed = run_program(command, driver.rounds, server, front)
    front.stop()
    print(printed)
    check_steps(printed, row, driver.rounds)
    assert 0 < peak.most <= SERVERS
    units = CLIENTS * driver.rounds
    assert direct(server, "copy", "SELECT count(*) FROM copied") == units * COPIED_ROWS
    parts = "SELECT string_agg(part, ' ' ORDER BY part) FROM (SELECT DISTINCT part FROM kept) p"
    assert direct(server, "transaction", parts) == "committed outer"
    assert direct(server, "transaction", "SELECT count(*) FROM kept") == 2 * units
    assert pins(front.log()) == expected_pins(row)


def test_every_driver_has_its_row_in_the_table() -> None:
    """Nothing is documented that does not run, and the other way round."""
    assert set(documented()) - {"driver", "---"} == {driver.name for driver in DRIVERS}
