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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measure import IDLE_CLIENTS, Sample, idle_client_bytes, pgbench, pgbench_program
from bench.programs import Program, floor, pgbouncer, pyproxy
from tests.fix_postgres import Postgres, Servers

RESULTS = Path(__file__).resolve().parents[1] / "bench-results"
IDLE_QUICK = 1000
BIG_SQL = "SELECT repeat('x', 1000) FROM generate_series(1, 20000);\n"


@dataclass(frozen=True)
class Row:
    """One row: pgbench's arguments (none: idle clients), and the ratio that must be reached."""

    name: str
    arguments: tuple[str, ...]
    bar: float
    bar_bytes: float = 0


ROWS = (
    Row("pgbench -S simple, 16 clients", ("-S", "-c", "16"), 1.0),
    Row("pgbench -S simple, 64 clients", ("-S", "-c", "64"), 0.85),
    Row("pgbench -S -M prepared, 16 clients", ("-S", "-M", "prepared", "-c", "16"), 0.85),
    Row("20 MB result (20,000 rows of 1 kB), 2 clients", ("-f", "BIG", "-c", "2"), 0.35),
    Row("connect + query + disconnect (-C), 16 clients", ("-S", "-C", "-c", "16"), 1.1),
    Row("5,000 idle clients, memory each", (), 0, bar_bytes=2048),
)


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
    row: Row, programs: list[Program], program: str, big: Path, options: argparse.Namespace
) -> dict[str, list[Sample]]:
    """Run one row: each program in turn, as many rounds as asked for."""
    arguments = [str(big) if part == "BIG" else part for part in row.arguments]
    samples: dict[str, list[Sample]] = {one.name: [] for one in programs}
    for number in range(options.rounds):
        turn = programs[number % len(programs) :] + programs[: number % len(programs)]
        for one in turn:
            got = pgbench(program, one.port, one.pid, options.seconds, arguments)
            samples[one.name].append(got)
            text = f"{row.name}: {one.name}: {got.cpu_us:.2f} us, {got.tps:.0f} tps"
            print(text, file=sys.stderr, flush=True)
    return samples


def cell(cpu_us: float) -> str:
    """Return a CPU time as the table shows it."""
    return f"{cpu_us / 1000:.1f} ms" if cpu_us >= 1000 else f"{cpu_us:.1f} µs"


def table(rows: list[dict[str, object]], names: list[str]) -> str:
    """Return the Markdown table."""
    lines = [
        "| work | " + " | ".join(names) + " | ratio | must reach | |",
        "| --- |" + " --- |" * (len(names) + 3),
    ]
    for row in rows:
        figures = row["figures"]
        assert isinstance(figures, dict)
        shown = " | ".join(figures[name] for name in names)
        met = "yes" if row["met"] else "**no**"
        lines.append(f"| {row['name']} | {shown} | {row['ratio']} | {row['bar']} | {met} |")
    return "\n".join(lines)


def cpu_row(row: Row, samples: dict[str, list[Sample]]) -> dict[str, object]:
    """Sum up a row of CPU times."""
    cpu = {name: median(one.cpu_us for one in got) for name, got in samples.items()}
    peer = next(name for name in cpu if name.startswith("PgBouncer"))
    ratio = cpu["pyproxy"] / cpu[peer]
    return {
        "name": row.name,
        "figures": {name: cell(value) for name, value in cpu.items()},
        "cpu_us": cpu,
        "tps": {name: median(one.tps for one in got) for name, got in samples.items()},
        "latency_ms": {
            name: median(one.latency_ms for one in got) for name, got in samples.items()
        },
        "ratio": f"{ratio:.2f}",
        "bar": f"≤ {row.bar:g}",
        "met": ratio <= row.bar,
    }


def idle_row(
    row: Row, server: Postgres, programs: list[Program], clients: int
) -> dict[str, object]:
    """Measure and sum up the row of idle clients, on programs that were just started.

    What an earlier row left in a program's heap would hide what a client costs.
    """
    used = {}
    for start in (pgbouncer, pyproxy):
        with start(server) as fresh:
            used[fresh.name] = idle_client_bytes(fresh.port, fresh.pid, clients)
    peer = next(name for name in used if name.startswith("PgBouncer"))
    return {
        "name": row.name,
        "figures": {
            one.name: f"{used[one.name] / 1024:.1f} kB" if one.name in used else "–"
            for one in programs
        },
        "bytes": used,
        "ratio": f"{used['pyproxy'] / max(used[peer], 1):.2f}",
        "bar": f"≤ {row.bar_bytes / 1024:g} kB",
        "met": used["pyproxy"] <= row.bar_bytes,
    }


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
    rows = []
    try:
        with ExitStack() as stack:
            server, program = prepare(servers)
            programs = [stack.enter_context(pgbouncer(server))]
            programs.append(stack.enter_context(pyproxy(server)))
            programs += [stack.enter_context(floor(server, text)) for text in given.floor]
            for row in ROWS:
                if given.only not in row.name:
                    continue
                if row.arguments:
                    rows.append(cpu_row(row, measure(row, programs, program, big, given)))
                else:
                    rows.append(
                        idle_row(row, server, programs, IDLE_QUICK if given.quick else IDLE_CLIENTS)
                    )
    finally:
        servers.stop()
        shutil.rmtree(scratch, ignore_errors=True)
    print(table(rows, [one.name for one in programs]))
    print(f"\nMedians of {given.rounds} rounds of {given.seconds} s, one worker, 20 servers.")
    if given.quick:
        print(f"A quick look: {IDLE_QUICK} idle clients; one short round says little.")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
