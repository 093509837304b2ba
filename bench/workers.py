"""Several workers as one proxy: what a transaction costs them, and how evenly they share the work.

usage: bench/workers.py [--rounds N] [--seconds S] [--workers N]

The same load on one worker and on several, in turns; CPU as in `run.py`, each worker's share from
its own counters. Two workers, a server and pgbench need more than two cores to be any faster: look
at the cost and at the shares, not at the throughput. Next on the path: `measure.py`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measure import Sample, pgbench
from bench.programs import Program, pyproxy
from bench.run import RESULTS, prepare, scratch_folder
from tests.fix_postgres import Servers

CLIENTS = (16, 64)
COST_BAR = 1.1
SHARE_BAR = 1.2
"""The busiest worker's share may be this much above an even one: 60 % of two."""


PUBLISHED_S = 1.2
"""Workers publish their counters once a second."""


def transactions(program: Program) -> list[int]:
    """Return how many transactions each worker has served so far."""
    assert program.front is not None
    Event().wait(PUBLISHED_S)
    return [row["transactions"] for row in program.front.table("workers")]


def measure(
    programs: list[Program], program: str, clients: int, options: argparse.Namespace
) -> tuple[dict[str, list[Sample]], list[float]]:
    """Run one number of clients on each program in turn; return the samples and the shares.

    A share is that of the busiest worker of the last program in one round.
    """
    samples: dict[str, list[Sample]] = {one.name: [] for one in programs}
    shares = []
    for _ in range(options.rounds):
        for one in programs:
            before = transactions(one)
            arguments = ["-S", "-c", str(clients)]
            got = pgbench(program, one.port, one.pid, options.seconds, arguments)
            served = [now - then for now, then in zip(transactions(one), before, strict=True)]
            samples[one.name].append(got)
            share = max(served) / max(sum(served), 1)
            if one is programs[-1]:
                shares.append(share)
            text = f"{clients} clients: {one.name}: {got.cpu_us:.2f} us, {got.tps:.0f} tps"
            print(f"{text}, busiest {share:.2f}", file=sys.stderr, flush=True)
    return samples, shares


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description="one worker and several, side by side")
    parser.add_argument("--rounds", type=int, default=5, help="rounds a row (default 5)")
    parser.add_argument("--seconds", type=int, default=5, help="seconds a run (default 5)")
    parser.add_argument("--workers", type=int, default=2, help="workers (default 2)")
    given = parser.parse_args()
    folder = scratch_folder()
    servers = Servers(folder)
    rows: list[dict[str, Any]] = []
    try:
        with ExitStack() as stack:
            server, program = prepare(servers)
            one = stack.enter_context(pyproxy(server))
            several = stack.enter_context(pyproxy(server, workers=given.workers))
            for clients in CLIENTS:
                samples, shares = measure([one, several], program, clients, given)
                cost = {name: median(s.cpu_us for s in got) for name, got in samples.items()}
                ratio = cost[several.name] / cost[one.name]
                busiest = median(shares)
                rows.append(
                    {
                        "clients": clients,
                        "cpu_us": cost,
                        "ratio": ratio,
                        "busiest": busiest,
                        "met": ratio <= COST_BAR and busiest <= SHARE_BAR / given.workers,
                    }
                )
    finally:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"| clients | one worker | {given.workers} workers | ratio (≤ {COST_BAR}) | busiest | |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        first, second = row["cpu_us"].values()
        met = "yes" if row["met"] else "**no**"
        figures = f"{first:.1f} µs | {second:.1f} µs | {row['ratio']:.2f} | {row['busiest']:.0%}"
        print(f"| {row['clients']} | {figures} | {met} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "workers.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
