"""`pyproxy demo` as a newcomer runs it: what it prints, how it ends, what it leaves behind.

The verdict itself: `../unit/test_verdict.py`. Next on the path: `test_wheel.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from pyproxy import exitcodes
from pyproxy.demo.binaries import packaged_binaries
from tests.fix_postgres import wait_until

FIRST_LINE_S = 20.0
VERDICT_S = 300.0
SMALL = ("--clients", "60", "--seconds", "1")


class Demo:
    """One run of the demo; its lines are read as they come."""

    def __init__(self, scratch: Path, *arguments: str, **environment: str) -> None:
        self.scratch = scratch
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyproxy", "demo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"} | environment,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def urls(self) -> list[str]:
        """The addresses past the proxy and through it."""
        return re.findall(r"psql (postgresql://\S+)", self.text)

    def wait_line(self, pattern: str, seconds: float = VERDICT_S) -> str:
        def found() -> str | None:
            return next((line for line in self.lines if re.search(pattern, line)), None)

        return str(wait_until(found, f"a line {pattern!r} in:\n{self.text}", seconds))

    def end(self) -> int:
        code = self.process.wait(VERDICT_S)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def processes(self) -> dict[int, str]:
        """Return the live processes that were started in the demo's folder."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(self.scratch) in command:
                found[int(entry.name)] = command
        return found

    def kill(self, pattern: str) -> None:
        """Kill the process that it has started itself and whose command line has the pattern."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        commands = self.processes()
        (pid,) = (
            int(child)
            for child in children.read_text().split()
            if re.search(pattern, commands.get(int(child), ""))
        )
        os.kill(pid, signal.SIGKILL)

    def assert_nothing_is_left(self) -> None:
        wait_until(lambda: not self.processes(), f"all ended: {self.processes()}")
        assert list(self.scratch.iterdir()) == []


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Give a folder that the database's account can enter, too."""
    folder = Path(tempfile.mkdtemp(prefix="demo-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_once_ends_with_a_verdict_and_leaves_nothing_behind(scratch: Path) -> None:
    demo = Demo(scratch, "--once", *SMALL)
    demo.wait_line("pyproxy demo: 60 short-lived clients on 20 server connections", FIRST_LINE_S)
    code = demo.end()
    assert code == exitcodes.OK, demo.text
    urls = re.findall(r"psql (postgresql://demo:\w+@127\.0\.0\.1:\d+/demo)", demo.text)
    assert len(urls) == 2, demo.text
    for row in ("clients +60 +60", "confirmed commits kept +60 +60", "p50", "p99"):
        assert re.search(row, demo.text), demo.text
    assert "no error, no commit lost" in demo.text
    demo.assert_nothing_is_left()


def test_the_database_of_the_package_serves_where_the_system_has_none(scratch: Path) -> None:
    binaries = packaged_binaries(scratch / "copy")
    assert binaries is not None
    demo = Demo(scratch, "--once", *SMALL, PYPROXY_PG_BINDIR=str(binaries))
    assert demo.end() == exitcodes.OK, demo.text
    assert "PostgreSQL 18" in demo.text


def test_it_stays_up_and_its_addresses_work_until_it_is_told_to_end(scratch: Path) -> None:
    demo = Demo(scratch, *SMALL)
    demo.wait_line("It stays up")
    for url in demo.urls:
        connection = psycopg2.connect(url)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM visits")
            assert cursor.fetchone() == (120,)
        connection.close()
    config = re.search(r"pyproxy status .* -c (\S+)", demo.text)
    assert config is not None, demo.text
    status = subprocess.run(
        [sys.executable, "-m", "pyproxy", "status", "-c", config[1]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "serving" in status.stdout, status.stdout + status.stderr
    demo.process.send_signal(signal.SIGTERM)
    assert demo.end() == exitcodes.OK, demo.text
    demo.assert_nothing_is_left()


def test_a_signal_in_the_storm_ends_everything_and_is_no_success(scratch: Path) -> None:
    demo = Demo(scratch, "--once", "--clients", "200", "--seconds", "120")
    demo.wait_line("a storm straight")
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == exitcodes.FINDINGS, demo.text
    demo.assert_nothing_is_left()


def test_a_killed_demo_takes_database_and_proxy_with_it(scratch: Path) -> None:
    demo = Demo(scratch, *SMALL)
    demo.wait_line("It stays up")
    demo.process.kill()
    demo.end()
    wait_until(lambda: not demo.processes(), f"all ended: {demo.processes()}", 60)


def test_a_storm_in_which_the_proxy_dies_is_no_success(scratch: Path) -> None:
    demo = Demo(scratch, "--once", "--clients", "200", "--seconds", "12")
    demo.wait_line("a storm through")
    for pid, command in demo.processes().items():
        if "pyproxy run" in command or "-m pyproxy" in command:
            os.kill(pid, signal.SIGKILL)
    assert demo.end() == exitcodes.FINDINGS, demo.text
    assert re.search(r"broken: \d+ of 200 clients were refused or failed", demo.text), demo.text
    demo.assert_nothing_is_left()


def test_a_worker_that_dies_while_its_clients_stay_is_no_success(scratch: Path) -> None:
    demo = Demo(scratch, "--once", "--clients", "100", "--seconds", "20")
    demo.wait_line("a storm through")
    (log_path,) = scratch.glob("*/pyproxy/pyproxy.log")
    stays = re.compile(r"event=serving .*worker=0")
    line = next(line for line in log_path.read_text().splitlines() if stays.search(line))
    worker = int(line.partition("pid=")[2].split()[0])
    with psycopg2.connect(demo.urls[0]) as connection, connection.cursor() as cursor:

        def half_have_come() -> bool:
            cursor.execute("SELECT count(*) FROM visits WHERE storm = 'through pyproxy'")
            return int((cursor.fetchone() or (0,))[0]) >= 50

        wait_until(half_have_come, "half of the clients have come")
    connection.close()
    os.kill(worker, signal.SIGKILL)
    assert demo.end() == exitcodes.FINDINGS, demo.text
    assert re.search("through pyproxy: .* cut off while it stayed", demo.text), demo.text
    demo.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("pattern", "name"), [("postgres -D", "PostgreSQL"), ("-m pyproxy run", "the proxy")]
)
def test_what_dies_while_it_stays_up_is_named_and_nothing_is_left(
    scratch: Path, pattern: str, name: str
) -> None:
    demo = Demo(scratch, *SMALL)
    demo.wait_line("It stays up")
    demo.kill(pattern)
    assert demo.end() == exitcodes.UNAVAILABLE, demo.text
    assert f"{name} ended with -9; the end of its log:" in demo.text
    demo.assert_nothing_is_left()


def test_a_database_that_dies_in_a_storm_is_named(scratch: Path) -> None:
    demo = Demo(scratch, "--once", "--clients", "200", "--seconds", "120")
    demo.wait_line("a storm straight")
    demo.kill("postgres -D")
    assert demo.end() == exitcodes.UNAVAILABLE, demo.text
    assert "PostgreSQL failed: " in demo.text
    assert "Traceback" not in demo.text
    demo.assert_nothing_is_left()


def test_further_signals_do_not_interrupt_the_tidying_up(scratch: Path) -> None:
    demo = Demo(scratch, *SMALL)
    demo.wait_line("It stays up")
    while demo.process.poll() is None:
        demo.process.send_signal(signal.SIGTERM)
    assert demo.end() == exitcodes.OK, demo.text
    demo.assert_nothing_is_left()


def test_servers_and_settings_of_others_are_left_alone(scratch: Path) -> None:
    """Were one of these read, a storm would fail, and the superuser's login go elsewhere."""
    others = {"PGHOSTADDR": "127.0.0.2", "PGSERVICE": "production", "PGSSLMODE": "require"}
    others |= {"PYPROXY__PROXY__0__TARGET__0__PORT": "1", "PYPROXY__LOG__LEVEL": "error"}
    demo = Demo(scratch, "--once", *SMALL, **others)
    assert demo.end() == exitcodes.OK, demo.text
    demo.assert_nothing_is_left()


def test_a_folder_without_postgresql_is_named(scratch: Path) -> None:
    demo = Demo(scratch, "--once", PYPROXY_PG_BINDIR=str(scratch))
    assert demo.end() == exitcodes.UNAVAILABLE
    assert f"{scratch} has no initdb and postgres" in demo.text
    assert "Traceback" not in demo.text
    demo.assert_nothing_is_left()
