"""`make load`: one storm through the proxy and one directly, on servers of its own, and a table.

usage: python -m loadtests.run [--target proxy|direct|both] [--clients N] [--rate N] [--seconds S]
                               [--stay S] [--statement SQL] [--servers N] [--workers N] [--out DIR]

Locust runs as a process of its own, headless; this one starts PostgreSQL and pyproxy, counts server
connections and compares. Exit codes: 0 nothing failed through the proxy, 1 something did, 2 usage,
69 a program could not be run or died, or nothing could be written. Next on the path:
`locustfile.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.comparison import Outcome, page
from pyproxy import exitcodes
from pyproxy.demo.children import Child, tail
from pyproxy.demo.postgres import USER, Postgres
from pyproxy.demo.service import Service
from pyproxy.demo.surroundings import (
    EndedError,
    forget_foreign_settings,
    let_signals_end,
    scratch_folder,
)
from pyproxy.errors import OperatorError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "loadtests-results"
LOCUST_EXTRA_S = 90.0
"""What Locust may take beyond the storm itself: its start, the last answers, its reports."""
STOP_S = 10.0
SAMPLE_EVERY_S = 0.05
"""How often server connections are counted: a peak is seen, and counting costs little."""
COUNT_SQL = (
    "SELECT count(*) FROM pg_stat_activity"
    f" WHERE backend_type = 'client backend' AND usename = '{USER}'"
)


@dataclass
class Peak:
    """The most server connections seen at a time."""

    most: int = 0


@contextmanager
def counted(server: Postgres) -> Iterator[Peak]:
    """Count the storm's server connections all the while, through a connection not counted.

    Raises `OperatorError` (69) at the end if the server could not be asked all the while.
    """
    peak = Peak()
    failures: list[OperatorError] = []
    stop = threading.Event()

    def count() -> None:
        try:
            with server.cursor() as cursor:
                while not stop.wait(SAMPLE_EVERY_S):
                    cursor.execute(COUNT_SQL)
                    row = cursor.fetchone()
                    peak.most = max(peak.most, row[0] if row else 0)
        except OperatorError as error:
            failures.append(error)

    thread = threading.Thread(target=count, name="count", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join(STOP_S)
    if thread.is_alive():
        failures.append(OperatorError("PostgreSQL stands still", exitcodes.UNAVAILABLE))
    if failures:
        raise failures[0]


def environment(port: int, password: str) -> dict[str, str]:
    """Return Locust's environment: this one's, but for what would turn it to another server."""
    ours = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGDATABASE": USER, "PGUSER": USER}
    foreign = ("PG", "LOCUST_", "STORM_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | ours | {"PGPASSWORD": password, "PGSSLMODE": "disable"}


def command(given: argparse.Namespace, files: Path) -> list[str]:
    """Return Locust's command line; its reports are `files` with further endings."""
    return [
        *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests" / "locustfile.py")),
        *("--headless", "--only-summary", "--html", f"{files}.html", "--json-file", str(files)),
        *("--clients", str(given.clients), "--rate", str(given.rate)),
        *("--seconds", str(given.seconds), "--stay", str(given.stay)),
        *(f"--statement={given.statement}", "--figures-file", f"{files}.figures.json"),
    ]


def storm(
    given: argparse.Namespace, target: str, server: Postgres, port: int, out: Path
) -> Outcome:
    """Run Locust against a port and return what it measured; raises `OperatorError` (69)."""
    files = out / target
    log_path = out / f"{target}.log"
    limit_s = given.seconds + given.stay + LOCUST_EXTRA_S
    print(f"load: {target}: {given.rate:g} clients a second for {given.seconds:g} s …", flush=True)
    with counted(server) as peak:
        locust = Child(
            "locust", command(given, files), ROOT, log_path, env=environment(port, server.password)
        )
        try:
            locust.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            text = f"locust did not end within {limit_s:g} s; see {log_path}"
            raise OperatorError(text, exitcodes.UNAVAILABLE) from None
        finally:
            locust.stop(STOP_S)
    try:
        figures = json.loads(Path(f"{files}.figures.json").read_text())
    except FileNotFoundError:
        text = f"locust measured nothing; the end of {log_path}:\n{tail(log_path)}"
        raise OperatorError(text, exitcodes.UNAVAILABLE) from None
    return Outcome(target, figures, peak.most, given.servers if target == "proxy" else None)


def run(given: argparse.Namespace, out: Path) -> list[Outcome]:
    """Run the storms that were asked for on a server that lives as long as they do."""
    outcomes = []
    with scratch_folder("pyproxy-load-") as scratch:
        folders = {name: scratch / name for name in ("postgres", "pyproxy")}
        for folder in folders.values():
            folder.mkdir(mode=0o700)
        server = Postgres(folders["postgres"])
        try:
            server.start()
            if given.target != "direct":
                service = Service(
                    folders["pyproxy"], server, servers=given.servers, workers=given.workers
                )
                try:
                    service.start()
                    outcomes.append(storm(given, "proxy", server, service.port, out))
                    if (code := service.ended()) is not None:
                        text = f"the proxy ended with {code}:\n{service.log_tail()}"
                        raise OperatorError(text, exitcodes.UNAVAILABLE)
                finally:
                    service.stop()
            if given.target != "proxy":
                outcomes.append(storm(given, "direct", server, server.port, out))
        finally:
            server.stop()
    return outcomes


def options(arguments: list[str]) -> argparse.Namespace:
    """Return the command line's options; ends with 2 if they make no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.run", description="a storm of short-lived clients"
    )
    add = parser.add_argument
    add("--target", choices=("proxy", "direct", "both"), default="both", help="default: both")
    add("--clients", type=int, default=1000, help="most at a time (default 1000)")
    add("--rate", type=float, default=200, help="clients that come a second (default 200)")
    add("--seconds", type=float, default=15, help="time they come for (default 15)")
    add("--stay", type=float, default=4, help="seconds each stays, idle (default 4)")
    add("--statement", default="", help="SQL to add to each transaction (default none)")
    add("--servers", type=int, default=20, help="the proxy's server connections (default 20)")
    add("--workers", type=int, default=2, help="the proxy's workers (default 2)")
    add("--out", type=Path, help=f"folder of the results (default {RESULTS.name}/TIME)")
    given = parser.parse_args(arguments)
    positive = (given.clients, given.rate, given.seconds, given.servers, given.workers)
    if not all(0 < number < math.inf for number in positive) or not 0 <= given.stay < math.inf:
        parser.error("numbers must be above 0 (--stay: 0 or above)")
    if round(given.rate * given.seconds) < 1:
        parser.error("with this rate nobody comes in this time")
    return given


def head(given: argparse.Namespace) -> str:
    """Return the sentences above the table."""
    return (
        f"Storm: {given.rate:g} clients a second for {given.seconds:g} s, at most"
        f" {given.clients:,} at a time; each logs in, runs one transaction, stays"
        f" {given.stay:g} s and leaves. The proxy: {given.workers} workers, {given.servers} server"
        " connections. Times are those of what succeeded; a stay is not counted."
    )


def prepare(out: Path) -> None:
    """Make the results' folder and remove an earlier run's figures: they are not this run's.

    Raises `OperatorError` (69) if nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for target in ("proxy", "direct"):
            for ending in ("html", "json", "figures.json", "log"):
                (out / f"{target}.{ending}").unlink(missing_ok=True)
        (out / "comparison.md").write_text("")
    except OSError as error:
        text = f"the results cannot be written: {error}; name another folder with --out"
        raise OperatorError(text, exitcodes.UNAVAILABLE) from None


def main(arguments: list[str]) -> int:
    """Run, print and write the table; return the exit code."""
    given = options(arguments)
    out = (given.out or RESULTS / time.strftime("%Y%m%d-%H%M%S")).resolve()
    forget_foreign_settings(os.environ)
    try:
        let_signals_end()
        prepare(out)
        outcomes = run(given, out)
    except OperatorError as error:
        print(f"load: {error}", file=sys.stderr)
        return error.exit_code
    except EndedError:
        print("load: stopped; there is no table", file=sys.stderr)
        return exitcodes.FINDINGS
    text = page(head(given), outcomes)
    (out / "comparison.md").write_text(text)
    print(f"\n{text}\nload: reports in {out}")
    failed = any(one.target == "proxy" and one.findings() for one in outcomes)
    return exitcodes.FINDINGS if failed else exitcodes.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
