"""What the benchmark measures with: CPU time and memory of process trees, pgbench, idle clients.

Not here: which programs are compared and which rows there are. Next on the path: `run.py`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.wire import Wire

IDLE_CLIENTS = 5000
PGBENCH_GRACE_S = 60


@dataclass(frozen=True)
class Sample:
    """One pgbench run: transactions a second, CPU of the proxy a transaction, median latency."""

    tps: float
    cpu_us: float
    p50_us: float | None


def tree(pid: int) -> set[int]:
    """Return a process and all its descendants."""
    found = {pid}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found |= tree(int(child))
    return found


def cpu_ns(pid: int) -> int:
    """Return the on-CPU time of all threads of a process tree, as the scheduler counts it."""
    return sum(
        int(stat.read_text().split()[0])
        for member in tree(pid)
        for stat in Path(f"/proc/{member}/task").glob("*/schedstat")
    )


def private_bytes(pid: int) -> int:
    """Return the private memory of a process tree."""
    total = 0
    for member in tree(pid):
        text = Path(f"/proc/{member}/smaps_rollup").read_text()
        total += 1024 * sum(int(kb) for kb in re.findall(r"Private_\w+:\s+(\d+) kB", text))
    return total


def pgbench_program(binaries: Path) -> str:
    """Return the path of pgbench, of the measured server's version if it is there."""
    beside = binaries / "pgbench"
    found = str(beside) if beside.exists() else shutil.which("pgbench")
    if found is None:
        raise SystemExit("bench: pgbench is not installed (apt install postgresql-client)")
    return found


def pgbench(
    program: str, port: int, pid: int, seconds: int, arguments: list[str], with_p50: bool = False
) -> Sample:
    """Run pgbench against a port and return what it cost the process tree of `pid`.

    `with_p50` has it log every transaction, which costs pgbench itself a little.
    """
    before = cpu_ns(pid) if pid else 0
    with tempfile.TemporaryDirectory(prefix="bench-log-") as folder:
        log = ["-l", f"--log-prefix={folder}/log"] if with_p50 else []
        done = subprocess.run(
            [
                *(program, "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-n", "-j", "2"),
                *("-T", str(seconds), *log, *arguments, "bench"),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds + PGBENCH_GRACE_S,
        )
        used = (cpu_ns(pid) - before) if pid else 0
        # client, transaction, latency in microseconds, …
        rows = [row for file in Path(folder).iterdir() for row in file.read_text().splitlines()]
    latencies = [float(row.split()[2]) for row in rows]
    patterns = (r"actually processed: (\d+)", r"tps = ([\d.e+]+)")
    found = [re.search(pattern, done.stdout) for pattern in patterns]
    if done.returncode or None in found or with_p50 > bool(latencies):
        raise SystemExit(f"bench: pgbench failed on port {port}:\n{done.stderr[-2000:]}")
    count, tps = (float(match[1]) for match in found if match)
    return Sample(tps, used / 1e3 / max(count, 1), median(latencies) if latencies else None)


def idle_client_bytes(port: int, pid: int, clients: int = IDLE_CLIENTS) -> float:
    """Log in idle clients and return the private memory that each adds to a process tree."""
    with Wire.login("127.0.0.1", port, database="bench") as first:
        first.value("SELECT 1")
        before = private_bytes(pid)
        crowd = [Wire.login("127.0.0.1", port, database="bench") for _ in range(clients)]
        after = private_bytes(pid)
        for client in crowd:
            client.close()
    return (after - before) / clients
