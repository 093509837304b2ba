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
from pyproxy.demo.children import free_port
from pyproxy.errors import OperatorError
from pyproxy.supervisor.listeners import Listeners
from pyproxy.supervisor.pidfile import PidFile


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
    offered = listeners.offered([tcp("127.0.0.1", port), ListenAddress(unix=str(path))])
    assert [(number, unix) for number, _, unix in offered] == [(1, False), (2, True)]
    assert all(not os.get_blocking(descriptor) for _, descriptor, _ in offered)
    assert path.stat().st_mode & 0o777 == 0o777
    listeners.close()
    assert not path.exists()


def test_ipv4_and_ipv6_may_share_a_port(bind: Callable[..., Listeners]) -> None:
    port = free_port()
    addresses = [tcp("127.0.0.1", port), tcp("::", port)]
    assert len(bind(*addresses).offered(addresses)) == 2


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


def test_what_stays_keeps_its_socket_and_number_when_others_come_and_go(
    bind: Callable[..., Listeners],
) -> None:
    stays, goes, comes = (tcp("127.0.0.1", free_port()) for _ in range(3))
    listeners = bind(stays, goes)
    before = listeners.offered([stays])
    assert listeners.bind([stays, comes]) == [comes]
    assert listeners.retire([stays, comes]) == [goes]
    assert listeners.offered([stays, goes]) == before
    assert [number for number, _, _ in listeners.offered([comes])] == [3]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", goes.port))
    socket.create_connection(("127.0.0.1", comes.port)).close()


def test_a_change_that_fails_leaves_everything_as_it_was(bind: Callable[..., Listeners]) -> None:
    old, new = tcp("127.0.0.1", free_port()), tcp("127.0.0.1", free_port())
    listeners = bind(old)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bad = tcp("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(OperatorError, match="another process listens there"):
            listeners.bind([new, bad])
    assert len(listeners.offered([old, new, bad])) == 1
    bind(new)


def test_an_address_that_ours_still_holds_is_told_as_such(bind: Callable[..., Listeners]) -> None:
    old = tcp("127.0.0.1", free_port())
    listeners = bind(old)
    with pytest.raises(OperatorError, match=f"{old} is in the way until it is closed"):
        listeners.bind([tcp("0.0.0.0", old.port)])


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
