"""The programs that are compared: PgBouncer, pyproxy and, by argument, floors.

PgBouncer is taken from a root folder that holds a newer system (`PYPROXY_PEERS`) if there is one,
else from this system. Next on the path: `measure.py`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyproxy.demo.children import free_port
from tests.fix_postgres import Postgres, wait_until
from tests.fix_proxy import TRUSTED, Proxy, ProxyMaker, private_folder

SERVERS = 20
CLIENTS_MAX = 10_000
PEERS_DEFAULT = "/var/tmp/peers"

PGBOUNCER_INI = """\
[databases]
bench = host=127.0.0.1 port={server} dbname=bench
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/userlist.txt
pool_mode = transaction
default_pool_size = {servers}
max_client_conn = {clients}
max_prepared_statements = 200
log_connections = 0
log_disconnections = 0
"""


@dataclass(frozen=True)
class Program:
    """One running program: what to call it, its port and its first process; ours with its front."""

    name: str
    port: int
    pid: int
    front: Proxy | None = None


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def _running(name: str, port: int, command: list[str], user: str | None) -> Iterator[Program]:
    """Run a command until the block ends; wait until its port accepts."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user=user,
        group=user,
    )
    try:
        wait_until(lambda: _accepts(port), f"{name} accepts")
        yield Program(name, port, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def pgbouncer(server: Postgres) -> Iterator[Program]:
    """Run PgBouncer in front of a server."""
    peers = Path(os.environ.get("PYPROXY_PEERS", PEERS_DEFAULT))
    root = peers if os.geteuid() == 0 and (peers / "usr/sbin/pgbouncer").exists() else Path("/")
    if not (root / "usr/sbin/pgbouncer").exists():
        raise SystemExit("bench: no PgBouncer found (apt install pgbouncer, or PYPROXY_PEERS=DIR)")
    enter = ["chroot", str(root)] if root != Path("/") else []
    said = subprocess.run(
        [*enter, "/usr/sbin/pgbouncer", "--version"], capture_output=True, text=True, check=True
    )
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=root / "tmp"))
    port = free_port()
    inside = Path("/") / folder.relative_to(root)
    (folder / "userlist.txt").write_text('"postgres" ""\n')
    text = PGBOUNCER_INI.format(
        server=server.port, port=port, folder=inside, servers=SERVERS, clients=CLIENTS_MAX
    )
    (folder / "pgbouncer.ini").write_text(text)
    folder.chmod(0o755)
    names = {entry.pw_name for entry in pwd.getpwall()}
    other = ("postgres" if "postgres" in names else "nobody") if os.geteuid() == 0 else None
    command = [*enter, "/usr/sbin/pgbouncer", "-q"]
    if enter:
        command += ["-u", "postgres"]
    command.append(str(inside / "pgbouncer.ini"))
    name = " ".join(said.stdout.split()[:2])
    try:
        with _running(name, port, command, None if enter else other) as program:
            yield program
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def pyproxy(server: Postgres, workers: int = 1, io: str = "auto") -> Iterator[Program]:
    """Run pyproxy in front of a server; `io` as in its settings."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    maker = ProxyMaker(private_folder(folder))
    try:
        front = maker(
            server,
            auth=(TRUSTED,),
            pool={"max_connections": SERVERS},
            max_clients=CLIENTS_MAX,
            workers=workers,
            supervisor={"io": io},
        )
        assert front.process is not None
        name = "pyproxy" if workers == 1 else f"pyproxy, {workers} workers"
        yield Program(name, front.port, front.process.pid, front)
    finally:
        maker.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def floor(server: Postgres, given: str) -> Iterator[Program]:
    """Run a floor, `NAME=PATH`: a program started as `PATH LISTEN_PORT SERVER_PORT SERVERS`."""
    name, _, path = given.partition("=")
    port = free_port()
    command = [path, str(port), str(server.port), str(SERVERS)]
    with _running(name, port, command, None) as program:
        yield program
