"""Side by side: what pyproxy and PgBouncer cost, in one run, as the table of the README.

usage: bench/run.py [--quick] [--rounds N] [--seconds S] [--only WORDS] [--floor NAME=PATH]…

CPU is the scheduler's on-CPU time of the whole process tree (schedstat), divided by pgbench's
transactions; the programs take turns within each round, and medians are shown. A noisy machine
moves these figures less than it moves throughput; compare ratios within one run only.
Next on the path: `programs.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measure import IDLE_CLIENTS, Sample, idle_client_bytes, pgbench, pgbench_program
from bench.programs import SERVERS, Program, floor, pgbouncer, pyproxy
from pyproxy._core import io_uring_missing
from tests.fix_postgres import Postgres, Servers

Start = Callable[[Postgres], AbstractContextManager[Program]]
RESULTS = Path(__file__).resolve().parents[1] / "bench-results"
IDLE_QUICK = 1000
BIG_SQL = "SELECT repeat('x', 1000) FROM generate_series(1, 20000);\n"


@dataclass(frozen=True)
class Row:
    """One piece of work: pgbench's arguments (none: idle clients), and what must be reached.

    Bars are ratios to PgBouncer: CPU a transaction, throughput, and the median latency; the idle
    clients' is bytes each.
    """

    name: str
    arguments: tuple[str, ...]
    cpu: float | None = None
    throughput: float | None = None
    p50: float | None = None
    idle_bytes: float | None = None


ROWS = (
    Row("simple, 1 client", ("-S", "-c", "1"), p50=1.1),
    Row("simple, 16 clients", ("-S", "-c", "16"), cpu=0.80),
    Row("simple, 64 clients", ("-S", "-c", "64"), cpu=0.62, throughput=1.15),
    Row("simple, 200 clients", ("-S", "-c", "200"), cpu=0.62),
    Row("prepared, 16 clients", ("-S", "-M", "prepared", "-c", "16"), cpu=0.70),
    Row("20 MB result, 2 clients", ("-f", "BIG", "-c", "2"), cpu=0.28),
    Row("connect + query, 16 clients", ("-S", "-C", "-c", "16"), cpu=0.95),
    Row("5,000 idle clients", (), idle_bytes=1229),
)


@dataclass(frozen=True)
class Line:
    """One line of the table: a figure a program, as text and as a ratio to PgBouncer's."""

    name: str
    figures: dict[str, str]
    ratios: dict[str, float]
    bar: str
    met: bool


def scratch_folder() -> Path:
    """Make a folder that the server's account may use, and allow as many files as there may be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    scratch = Path(tempfile.mkdtemp(prefix="bench-pg-"))
    if os.geteuid() == 0:
        shutil.chown(scratch, "postgres")
    scratch.chmod(0o755)
    return scratch


def prepare(servers: Servers) -> tuple[Postgres, str]:
    """Start a server with pgbench's tables at scale 10 in the database `bench`."""
    server = servers.make("pg15", shared_buffers="512MB", max_connections="200")
    server.sql("CREATE DATABASE bench")
    program = pgbench_program(server.binaries)
    made = subprocess.run(
        [
            *(program, "-h", server.host, "-p", str(server.port), "-U", "postgres"),
            *("-i", "-q", "-s", "10", "bench"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise SystemExit(f"bench: pgbench -i failed:\n{made.stderr[-2000:]}")
    return server, program


def measure(
    row: Row, programs: dict[str, Program], program: str, big: Path, options: argparse.Namespace
) -> dict[str, list[Sample]]:
    """Run one row: each program in turn, as many rounds as asked for."""
    arguments = [str(big) if part == "BIG" else part for part in row.arguments]
    samples: dict[str, list[Sample]] = {name: [] for name in programs}
    names = list(programs)
    for number in range(options.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            one = programs[name]
            got = pgbench(
                program, one.port, one.pid, options.seconds, arguments, row.p50 is not None
            )
            samples[name].append(got)
            text = f"{row.name}: {name}: {got.cpu_us:.2f} us, {got.tps:.0f} tps"
            print(text, file=sys.stderr, flush=True)
    return samples


def cell(cpu_us: float) -> str:
    """Return a CPU time as the table shows it."""
    return f"{cpu_us / 1000:.1f} ms" if cpu_us >= 1000 else f"{cpu_us:.1f} µs"


def peer_of(names: Iterable[str]) -> str:
    """Return the program that the others are compared with."""
    return next(name for name in names if name.startswith("PgBouncer"))


def judged_of(names: Iterable[str]) -> str:
    """Return the program that must reach the bars: ours, with the faster driver there is."""
    return [name for name in names if name.startswith("pyproxy")][-1]


def line(
    name: str, values: dict[str, float], show: Callable[[float], str], bar: float, least: bool
) -> Line:
    """Sum up one figure of all programs; `least`: the bar is a minimum."""
    peer = peer_of(values)
    ratios = {each: value / values[peer] for each, value in values.items() if each != peer}
    ratio = ratios[judged_of(values)]
    figures = {each: show(value) for each, value in values.items()}
    sign, met = ("≥", ratio >= bar) if least else ("≤", ratio <= bar)
    return Line(name, figures, ratios, f"{sign} {bar:g}", met)


def lines_of(row: Row, samples: dict[str, list[Sample]]) -> list[Line]:
    """Sum up a row: a line for each figure that has a bar, of the medians."""

    def medians(key: Callable[[Sample], float]) -> dict[str, float]:
        return {name: median(map(key, got)) for name, got in samples.items()}

    lines = []
    if row.cpu is not None:
        cpu = medians(lambda sample: sample.cpu_us)
        lines.append(line(f"{row.name}: CPU", cpu, cell, row.cpu, least=False))
    if row.throughput is not None:
        tps = medians(lambda sample: sample.tps)
        shown = line(
            f"{row.name}: a second", tps, lambda x: f"{x:,.0f}", row.throughput, least=True
        )
        lines.append(shown)
    if row.p50 is not None:
        p50 = medians(lambda sample: sample.p50_us or 0)
        lines.append(line(f"{row.name}: p50", p50, lambda x: f"{x:.0f} µs", row.p50, least=False))
    return lines


def idle_line(row: Row, server: Postgres, starts: dict[str, Start], clients: int) -> Line:
    """Measure and sum up the row of idle clients, on programs that were just started.

    What an earlier row left in a program's heap would hide what a client costs.
    """
    used = {}
    for name, start in starts.items():
        with start(server) as fresh:
            used[name] = idle_client_bytes(fresh.port, fresh.pid, clients)
    bar = row.idle_bytes or 0
    figures = {name: f"{each / 1024:.1f} kB" for name, each in used.items()}
    peer = peer_of(used)
    ratios = {name: each / max(used[peer], 1) for name, each in used.items() if name != peer}
    met = used[judged_of(used)] <= bar
    return Line(f"{row.name}: memory each", figures, ratios, f"≤ {bar / 1024:.1f} kB", met)


def table(lines: list[Line]) -> str:
    """Return the Markdown table."""
    names = list(lines[0].figures)
    peer = peer_of(names)
    others = [name for name in names if name != peer]
    head = ["work", peer, *(part for name in others for part in (name, "ratio")), "must reach", ""]
    text = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for each in lines:
        cells = [each.name, each.figures[peer]]
        for name in others:
            has = name in each.figures
            cells += [each.figures[name], f"{each.ratios[name]:.2f}"] if has else ["–", "–"]
        text.append(f"| {' | '.join([*cells, each.bar, 'yes' if each.met else '**no**'])} |")
    return "\n".join(text)


def options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description="CPU and memory of pyproxy beside PgBouncer")
    parser.add_argument("--quick", action="store_true", help="one round of one second, 1,000 idle")
    parser.add_argument("--rounds", type=int, default=5, help="rounds a row (default 5)")
    parser.add_argument("--seconds", type=int, default=5, help="seconds a run (default 5)")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--floor", action="append", default=[], help="NAME=PATH of a floor")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds = 1, 1
    return given


def main() -> None:
    """Run all rows and print the table."""
    given = options()
    scratch = scratch_folder()
    servers = Servers(scratch)
    big = scratch / "big.sql"
    big.write_text(BIG_SQL)
    starts: dict[str, Start] = {
        "PgBouncer": pgbouncer,
        "pyproxy, epoll": partial(pyproxy, io="epoll"),
    }
    missing = io_uring_missing()
    if missing is None:
        starts["pyproxy, io_uring"] = partial(pyproxy, io="io_uring")
    else:
        print(f"bench: no column for io_uring: {missing}", file=sys.stderr)
    lines: list[Line] = []
    try:
        with ExitStack() as stack:
            server, program = prepare(servers)
            programs = {name: stack.enter_context(start(server)) for name, start in starts.items()}
            for text in given.floor:
                one = stack.enter_context(floor(server, text))
                programs[one.name] = one
            for row in ROWS:
                if given.only not in row.name:
                    continue
                if row.arguments:
                    lines += lines_of(row, measure(row, programs, program, big, given))
                else:
                    clients = IDLE_QUICK if given.quick else IDLE_CLIENTS
                    lines.append(idle_line(row, server, starts, clients))
            version = programs["PgBouncer"].name
    finally:
        servers.stop()
        shutil.rmtree(scratch, ignore_errors=True)
    if not lines:
        raise SystemExit(f"bench: no row's name contains {given.only!r}")
    print(table(lines))
    rounds = f"{given.rounds} rounds of {given.seconds} s"
    print(f"\n{version}; medians of {rounds}, one worker, {SERVERS} servers.")
    if given.quick:
        print(f"A quick look: {IDLE_QUICK} idle clients; one short round says little.")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(
        json.dumps([asdict(each) for each in lines], indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
