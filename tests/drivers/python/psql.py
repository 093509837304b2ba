"""psql, which has no pool, by the contract of `README.md`: each unit is a process of its own.

Next on the path: `../node/contract.mjs`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.drivers.python import contract
from tests.drivers.python.contract import Where, expect

PROGRAM = os.environ.get("PSQL", "psql")
WITHIN_S = 60.0


def open_psql(place: Where) -> subprocess.Popen[str]:
    """Start psql; it prints rows only, reads no start-up file and shows SQLSTATEs."""
    return subprocess.Popen(
        [PROGRAM, "-X", "-q", "-A", "-t", "-v", "VERBOSITY=sqlstate"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PGDATABASE": place.database},
    )


def lines(place: Where, *script: str) -> list[str]:
    """Run a script and return what psql prints, errors among it where they come."""
    with open_psql(place) as process:
        try:
            printed, _ = process.communicate("".join(f"{line}\n" for line in script), WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return printed.splitlines()


def connect(place: Where, tag: int) -> None:
    """Use a connection of one's own."""
    expect(lines(place, f"SELECT {tag};"), [str(tag)])


def prepared(place: Where, tag: int) -> None:
    """Repeat statements by SQL: psql has had `\\bind` since version 16 only."""
    names = range(contract.TEXTS)
    script = [f"PREPARE text{name} (int) AS SELECT $1, 'text {name}';" for name in names]
    wanted = []
    for turn in range(contract.TURNS):
        for text in range(contract.TEXTS):
            script.append(f"EXECUTE text{text} ({tag * 100 + turn});")
            wanted.append(f"{tag * 100 + turn}|text {text}")
    expect(lines(place, *script), wanted)


def copy(place: Where, tag: int) -> None:
    """Copy rows in and out with `\\copy`."""
    rows = contract.copy_text(tag)
    out = contract.copy_out(tag).removeprefix("COPY ")
    script = ["\\copy copied FROM pstdin", *rows.splitlines(), "\\.", f"\\copy {out}"]
    expect(lines(place, *script), rows.splitlines())


def keep(tag: int, part: str) -> str:
    """Return the statement that writes a part of the tag."""
    return f"INSERT INTO kept VALUES ({tag}, '{part}');"


def transaction(place: Where, tag: int) -> None:
    """Commit, roll back, and roll back to a savepoint."""
    script = (
        *("BEGIN;", keep(tag, "committed"), "COMMIT;"),
        *("BEGIN;", keep(tag, "rolled back"), "ROLLBACK;"),
        *("BEGIN;", keep(tag, "outer"), "SAVEPOINT here;", keep(tag, "inner")),
        *("ROLLBACK TO SAVEPOINT here;", "COMMIT;"),
        f"SELECT part FROM kept WHERE tag = {tag} ORDER BY part;",
    )
    expect(tuple(lines(place, *script)), contract.KEEP)


def error(place: Where, tag: int) -> None:
    """Fail outside a transaction and in one; go on."""
    script = (
        *("SELECT 1 / 0;", f"SELECT {tag};"),
        *("BEGIN;", f"SELECT {tag};", "SELECT 1 / 0;", "SELECT 1;", "ROLLBACK;"),
        f"SELECT {tag};",
    )
    found = [line.removeprefix("ERROR:").strip() for line in lines(place, *script)]
    expect(found, [str(tag) if line == "tag" else line for line in ERROR_LINES])


ERROR_LINES = ("22012", "tag", "tag", "22012", "25P02", "tag")


def sleeper(place: Where, tag: int) -> None:
    """Be cut off by SIGINT, after which psql ends its script: the next one goes on."""
    with open_psql(place) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"SELECT {tag};\n{contract.SLEEP};\n")
        process.stdin.flush()
        expect(process.stdout.readline(), f"{tag}\n")
        with contract.cut_off(lambda: process.send_signal(signal.SIGINT)):
            printed, _ = process.communicate(timeout=WITHIN_S)
        expect("57014" in printed, True)
    connect(place, tag)


def beside(place: Where, tag: int) -> None:
    """Work while others are cancelled."""
    expect(lines(place, *[f"SELECT {tag};"] * contract.BESIDE), [str(tag)] * contract.BESIDE)


@contextmanager
def no_pool(place: Where) -> Iterator[Where]:
    """Give what to connect to: every unit does so itself."""
    yield place


def version() -> str:
    """Return psql's major version; the minor one is the machine's affair."""
    told = subprocess.run([PROGRAM, "--version"], check=True, capture_output=True, text=True)
    found = re.search(r"\d+", told.stdout)
    return found[0] if found else told.stdout


if __name__ == "__main__":
    contract.run_threads(
        contract.Program(
            driver="psql",
            version=version(),
            pool_name="none",
            pool=no_pool,
            connect=connect,
            prepared=prepared,
            pipeline="psql has had `\\startpipeline` since version 18 only",
            copy=copy,
            transaction=transaction,
            error=error,
            sleeper=sleeper,
            beside=beside,
        )
    )
