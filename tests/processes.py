"""What tests read of live processes from /proc.

Not here: how they are started (`fix_proxy.py`, `process/harness.py`). Next on the path:
`process/harness.py`.
"""

from __future__ import annotations

import re
from pathlib import Path


def private_bytes(pid: int) -> int:
    """Return the private memory of a process in bytes (what it alone keeps from others)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(kb) for kb in re.findall(r"Private_\w+:\s+(\d+) kB", text))


def cpu_seconds(pid: int) -> float:
    """Return the on-CPU seconds of all threads of a process, as the scheduler counts them."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total / 1e9


def lives(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descriptors(pid: int) -> list[str]:
    """Return what the descriptors of a process lead to."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(each.readlink()))
        except FileNotFoundError:
            continue
    return found


def parents() -> set[int]:
    """Return the ids of all processes that have children."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            found.add(int(stat.read_text().rpartition(")")[2].split()[1]))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def waiting_clients(port: int) -> int:
    """Return how many clients wait to be accepted from the IPv4 listener of a port."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if state == "0A" and int(local.partition(":")[2], 16) == port:
            return int(queues.partition(":")[2], 16)
    return 0
