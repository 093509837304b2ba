"""Listeners are bound or refused with one line that says why and what to do.

Not here: clients. Next on the path: `test_bridge.py`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from pyproxy.config.listen import ListenAddress, parse_listen
from pyproxy.errors import OperatorError
from pyproxy.supervisor.listeners import Listeners
from pyproxy.supervisor.pidfile import PidFile
from tests.fix_postgres import free_port


@pytest.fixture
def bind() -> Iterator[Callable[..., Listeners]]:
    """Return a function that binds addresses; closes what it bound."""
    made: list[Listeners] = []

    def bind(*addresses: ListenAddress) -> Listeners:
        listeners = Listeners()
        made.append(listeners)
        listeners.bind(addresses)
        return listeners

    yield bind
    for listeners in made:
        listeners.close()


def tcp(ip: str, port: int) -> ListenAddress:
    return ListenAddress(ip=ip_address(ip), port=port)


def test_tcp_and_unix_listeners_take_connections(
    tmp_path: Path, bind: Callable[..., Listeners]
) -> None:
    port, path = free_port(), tmp_path / ".s.PGSQL.1"
    listeners = bind(tcp("127.0.0.1", port), ListenAddress(unix=str(path)))
    socket.create_connection(("127.0.0.1", port)).close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert [is_unix for _, is_unix in listeners.descriptors()] == [False, True]
    assert all(not os.get_blocking(number) for number, _ in listeners.descriptors())
    assert path.stat().st_mode & 0o777 == 0o777
    listeners.close()
    assert not path.exists()


def test_ipv4_and_ipv6_may_share_a_port(bind: Callable[..., Listeners]) -> None:
    port = free_port()
    assert len(bind(tcp("127.0.0.1", port), tcp("::", port)).descriptors()) == 2


def test_a_port_in_use_ends_with_69_and_closes_the_others(bind: Callable[..., Listeners]) -> None:
    taken, free = free_port(), free_port()
    bind(tcp("127.0.0.1", taken))
    with pytest.raises(OperatorError, match="another process listens there; stop it") as caught:
        bind(tcp("127.0.0.1", free), tcp("127.0.0.1", taken))
    assert caught.value.exit_code == 69
    bind(tcp("127.0.0.1", free))


def test_an_address_of_another_machine_ends_with_78(bind: Callable[..., Listeners]) -> None:
    with pytest.raises(OperatorError, match="does not have that address") as caught:
        bind(tcp("192.0.2.1", free_port()))
    assert caught.value.exit_code == 78


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(
    tmp_path: Path, bind: Callable[..., Listeners]
) -> None:
    address = ListenAddress(unix=str(tmp_path / "s"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(address.unix)
    first = bind(address)
    with pytest.raises(OperatorError, match="another process listens there") as caught:
        bind(address)
    assert caught.value.exit_code == 69
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address.unix)
    first.close()


def test_a_file_in_the_way_is_never_removed(tmp_path: Path, bind: Callable[..., Listeners]) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(OperatorError, match="a file that is not a socket is in the way"):
        bind(ListenAddress(unix=str(path)))
    assert path.read_text() == "precious"


def test_a_successors_socket_is_left_alone_on_close(
    tmp_path: Path, bind: Callable[..., Listeners]
) -> None:
    path = tmp_path / "s"
    first = bind(ListenAddress(unix=str(path)))
    path.unlink()
    bind(ListenAddress(unix=str(path)))
    first.close()
    assert path.exists()


def test_a_second_service_is_kept_out_of_the_runtime_directory(tmp_path: Path) -> None:
    first = PidFile(str(tmp_path / "run"))
    assert first.path.read_text() == f"{os.getpid()}\n"
    with pytest.raises(OperatorError, match=f"another service .pid {os.getpid()}.") as caught:
        PidFile(str(tmp_path / "run"))
    assert caught.value.exit_code == 69
    first.remove()
    assert not first.path.exists()
    PidFile(str(tmp_path / "run")).remove()


def test_a_runtime_directory_that_cannot_be_made_ends_with_78(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match=r"set supervisor.runtime_dir") as caught:
        PidFile(str(tmp_path / "file" / "run"))
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("localhost:6432", "127.0.0.1:6432"),
        ("*:6432", "0.0.0.0:6432"),
        ("[::1]:6432", "[::1]:6432"),
        ("unix:/tmp/s", "unix:/tmp/s"),
        ("unix:s", "unix:/etc/pyproxy/s"),
    ],
)
def test_addresses_are_read_in_their_notations(text: str, shown: str) -> None:
    assert str(parse_listen(text, Path("/etc/pyproxy"))) == shown
