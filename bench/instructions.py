"""Count the instructions of the proxy's data path, and hold them against the baseline in the tree.

usage: bench/instructions.py [--write] PROGRAM

PROGRAM is `rust/bench`, built in profile `ci`. callgrind counts what runs inside one turn of the
engine's loop, in user space: the peers, which play in the same thread, and the kernel are left out.
A count is the difference of two runs, one twice as long as the other, for each transaction: what
comes before the first and after the last drops out. The same program gives the same count.
`--write` writes the baseline anew. Next on the path: `instructions.toml`.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASELINE = Path(__file__).with_name("instructions.toml")
# Works, and the transactions of the shorter run: enough that a rare allocation shows little.
WORKS = {"relay_small": 300, "relay_large": 1, "prepared": 300, "login": 50}
DRIVERS = ("epoll", "io_uring")
TOLERANCE_PERCENT = 3.0
PROFILE = "ci"
COUNTED = "engine::turns::Turns::turn"
UNAVAILABLE = 69  # the program's exit code for a driver that this machine does not have
RUN_S_MAX = 120  # ten times the longest run beside other work
# `rep movsb` counts as one instruction a byte in valgrind, which no processor takes that long for.
TUNABLES = (
    "glibc.cpu.x86_rep_movsb_threshold=0x40000000:glibc.cpu.x86_rep_stosb_threshold=0x40000000"
)

Counts = dict[str, dict[str, int]]


class WorkFailedError(Exception):
    """The program did not do its work; the message is what it said."""


class DriverMissingError(Exception):
    """The driver does not run here; the message says why."""


@dataclass(frozen=True)
class Verdict:
    """What a count means: a line for people, and whether it passes."""

    line: str
    passes: bool


def judge(work: str, driver: str, count: int, before: int | None) -> Verdict:
    """Compare a count with the baseline's, which has none for a work or driver that is new.

    A gain fails, too: a baseline that stays behind would let it be lost again unnoticed.
    """
    name = f"{work}, {driver}: {count:,} instructions a transaction"
    anew = "run `make instructions-baseline` and commit bench/instructions.toml"
    if before is None:
        return Verdict(f"{name}, and the baseline has none: {anew}", passes=False)
    percent = (count / before - 1) * 100
    if percent > TOLERANCE_PERCENT:
        fault = (
            f"{name}, {percent:.1f} % more than the baseline's {before:,} "
            f"(allowed: {TOLERANCE_PERCENT:.0f} %). Make it cheaper, or, where it is worth it, "
            f"{anew}, saying why"
        )
        return Verdict(fault, passes=False)
    if percent < -TOLERANCE_PERCENT:
        gain = (
            f"{name}, {-percent:.1f} % less than the baseline's {before:,}: well done; {anew}, "
            "so that the gain cannot be lost unnoticed"
        )
        return Verdict(gain, passes=False)
    return Verdict(f"{name} ({percent:+.1f} %)", passes=True)


def differences(here: dict[str, str], baseline: dict[str, str]) -> list[str]:
    """Return what counts here cannot be compared with the baseline's for, one phrase each."""
    return [
        f"{key} is {here.get(key, 'missing')} here and {baseline.get(key, 'missing')} there"
        for key in sorted({*here, *baseline})
        if here.get(key) != baseline.get(key)
    ]


def write(taken_with: dict[str, str], counts: Counts) -> str:
    """Return the text of a baseline."""
    lines = [
        "# Instructions in user space that one transaction costs the proxy, by work and driver.",
        "# Written by `make instructions-baseline`; a commit that changes it says why.",
        "",
        "[taken_with]",
        *(f'{key} = "{value}"' for key, value in taken_with.items()),
    ]
    for work, drivers in counts.items():
        lines += ["", f"[{work}]", *(f"{driver} = {count}" for driver, count in drivers.items())]
    return "\n".join(lines) + "\n"


def collected(report: str) -> int:
    """Return the instructions that callgrind's report says it has collected."""
    found = re.search(r"Collected : (\d+)", report)
    if found is None or found[1] == "0":
        raise WorkFailedError(f"callgrind has counted nothing inside {COUNTED}:\n{report[-2000:]}")
    return int(found[1])


def run(program: Path, work: str, driver: str, transactions: int) -> int:
    """Return the instructions of one run; raise what keeps it from ending well."""
    with tempfile.TemporaryDirectory(prefix="instructions-") as folder:
        done = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"),
                *("--collect-atstart=no", f"--toggle-collect={COUNTED}"),
                *(str(program), work, driver, str(transactions)),
            ],
            # Nothing else: what stands in the environment moves the stack, and alignment counts.
            env={"GLIBC_TUNABLES": TUNABLES, "TMPDIR": folder, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_S_MAX,
        )
    if done.returncode == UNAVAILABLE:
        said = [line for line in done.stderr.splitlines() if not line.startswith("==")]
        raise DriverMissingError(" ".join(said))
    if done.returncode != 0:
        raise WorkFailedError(f"{work}, {driver} failed:\n{done.stderr[-2000:]}")
    return collected(done.stderr)


def count_all(program: Path) -> tuple[Counts, list[str]]:
    """Return the count of each work with each driver, and why a driver was left out."""
    counts: Counts = {work: {} for work in WORKS}
    left_out = []
    for driver in DRIVERS:
        try:
            for work, transactions in WORKS.items():
                short, long = (run(program, work, driver, n * transactions) for n in (1, 2))
                counts[work][driver] = round((long - short) / transactions)
        except DriverMissingError as why:
            left_out.append(f"{driver} left out: {why}")
    return counts, left_out


def taken_with() -> dict[str, str]:
    """Return what counts depend on besides the source."""
    said = {
        name: subprocess.run([name, "--version"], capture_output=True, text=True, check=True).stdout
        for name in ("rustc", "valgrind")
    }
    return {
        "rustc": said["rustc"].strip().removeprefix("rustc "),
        "profile": PROFILE,
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "valgrind": said["valgrind"].strip().removeprefix("valgrind-"),
    }


def compare(program: Path) -> int:
    """Count and judge; return the exit code."""
    baseline: dict[str, Any] = tomllib.loads(BASELINE.read_text())
    if unlike := differences(taken_with(), baseline["taken_with"]):
        print(f"instructions: left out, they cannot be compared: {'; '.join(unlike)}")
        return 0
    counts, left_out = count_all(program)
    verdicts = [
        judge(work, driver, count, baseline.get(work, {}).get(driver))
        for work, drivers in counts.items()
        for driver, count in drivers.items()
    ]
    for line in [*left_out, *(verdict.line for verdict in verdicts)]:
        print(f"instructions: {line}")
    return int(not all(verdict.passes for verdict in verdicts))


def write_anew(program: Path) -> int:
    """Write the baseline; return the exit code."""
    counts, left_out = count_all(program)
    if left_out:
        # The others' counts would stand beside those of another machine or time.
        print(f"instructions: the baseline stays as it is: {'; '.join(left_out)}")
        return 1
    BASELINE.write_text(write(taken_with(), counts))
    print(f"instructions: written to {BASELINE}; `git diff` shows what has changed")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the baseline anew")
    parser.add_argument("program", type=Path, metavar="PROGRAM")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("instructions: left out: valgrind is not installed (apt install valgrind)")
        return int(arguments.write)
    try:
        return write_anew(arguments.program) if arguments.write else compare(arguments.program)
    except WorkFailedError as failed:
        print(f"instructions: {failed}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
