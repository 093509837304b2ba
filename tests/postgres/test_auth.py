"""Logins: clients towards the proxy, the proxy towards the server.

Next on the path: `test_drivers.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg2
import pytest

from tests.fix_postgres import PASSWORDS, Postgres
from tests.fix_proxy import Proxy
from tests.postgres.load import run_clients
from tests.wire import Message, Wire, message, startup

Maker = Callable[..., Proxy]


@pytest.fixture(scope="module")
def front(module_proxy: Callable[..., Proxy], postgres: Postgres) -> Proxy:
    """Give one proxy for all logins."""
    return module_proxy(postgres)


def begin(front: Proxy, user: str) -> tuple[Wire, Message]:
    """Send a start-up and return the first answer."""
    wire = Wire.open(front.host, front.port)
    wire.send(startup({"user": user, "database": "test"}))
    return wire, wire.message()


@pytest.mark.parametrize("user", ["postgres", "app", "old", "plain", "guest"])
def test_a_client_logs_in_and_is_who_it_says(user: str, front: Proxy) -> None:
    """Trust, SCRAM and md5 clients; trust, SCRAM, md5 and cleartext towards the server."""
    with front.wire(user) as wire:
        assert wire.value("SELECT session_user") == user


@pytest.mark.parametrize("user", ["postgres", "app", "old", "plain", "guest"])
def test_a_driver_logs_in(user: str, front: Proxy) -> None:
    """The same with libpq, whose SCRAM checks the proxy's signature."""
    with front.connect(user) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT session_user, current_database()")
        assert cursor.fetchone() == (user, "test")


def test_each_user_is_asked_by_its_own_method(front: Proxy) -> None:
    """SCRAM from the verifier, md5 where configured, nothing for trust."""
    kinds = {}
    for user in ("postgres", "app", "old"):
        wire, first = begin(front, user)
        kinds[user] = first.body[3]
        wire.close()
    assert kinds == {"postgres": 0, "app": 10, "old": 5}


@pytest.mark.parametrize("user", ["app", "old", "nobody", "app\u00e9"])
def test_wrong_password_and_unknown_user_get_the_same_answer(user: str, front: Proxy) -> None:
    """28P01 with PostgreSQL's own text, for a user who exists or not."""
    expected = f'login refused: 28P01 password authentication failed for user "{user}"'
    assert front.refusal(user, password="wrong") == expected


def test_an_empty_password_is_wrong(front: Proxy) -> None:
    """Nothing is not a password."""
    with (
        pytest.raises(psycopg2.OperationalError, match="password"),
        front.connect("app", password=""),
    ):
        pass
    assert "28P01" in front.refusal("old", password="")


def test_an_unknown_user_sees_the_steps_of_a_known_one(front: Proxy) -> None:
    """The mock exchange offers SCRAM with a salt that is stable for the user."""
    salts = []
    for user in ("nobody", "nobody", "somebody"):
        wire, first = begin(front, user)
        assert first.body == b"\0\0\0\x0aSCRAM-SHA-256\0\0"
        wire.answer(first.body, user, "guess")
        fields = dict(part.split(b"=", 1) for part in wire.message().body[4:].split(b","))
        assert fields[b"i"] == b"4096"
        salts.append(fields[b"s"])
        wire.close()
    assert salts[0] == salts[1] != salts[2]


def test_a_refused_login_is_logged_with_its_reason_and_no_secret(front: Proxy) -> None:
    """The operator learns who failed; no password, right or wrong, is in the log."""
    assert "28P01" in front.refusal("app", password="wr0ng-and-private")
    front.wait_log("login_failed.*user=.?app")
    text = front.log()
    assert "wr0ng-and-private" not in text
    assert not any(secret in text for secret in PASSWORDS.values())


@pytest.mark.parametrize(
    "answer",
    [
        message("p", b""),
        message("p", b"SCRAM-SHA-256\0"),
        message("p", b"SCRAM-SHA-256-PLUS\0\0\0\0\x08p=x,,n=,"),
        message("p", b"SCRAM-SHA-256\0\xff\xff\xff\xff"),
        message("p", b"SCRAM-SHA-256\0\0\0\0\x12n,,n=,m=ext,r=abcd"),
        message("p", b"x" * 65_000),
        message("Q", b"SELECT 1\0"),
        b"p\x7f\xff\xff\xff",
        b"p\0\0\0\0",
    ],
)
def test_a_broken_login_is_refused_and_closed(answer: bytes, front: Proxy) -> None:
    """Nothing that a client sends in place of a SASL message is more than an error (T8)."""
    wire, _ = begin(front, "app")
    wire.send(answer)
    rest = wire.rest()
    assert rest == b"" or rest[:1] == b"E"
    wire.sock.close()
    with front.wire("app") as other:
        assert other.value("SELECT 1") == "1"


def test_a_client_outside_of_the_allowed_networks_is_refused(
    postgres15: Postgres, proxy: Maker
) -> None:
    """The allow list comes before any password."""
    front = proxy(postgres15, allow=["127.0.0.2/32", "10.0.0.0/8"])
    wire = Wire.open(front.host, front.port)
    wire.send(startup({"user": "postgres", "database": "test"}))
    rest = wire.rest()
    wire.sock.close()
    assert rest == b"" or (rest[:1] == b"E" and b"C28000" in rest)


def test_a_verifier_is_enough_for_the_client_side(postgres15: Postgres, proxy: Maker) -> None:
    """The secret file may hold a verifier; the server's password stands beside it."""
    (verifier,) = postgres15.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")[0]
    users = {"app": {"verifier": verifier, "server_password": PASSWORDS["app"]}}
    auth = ({"user": "app", "scheme": "file", "secret": "file:users.toml"},)
    front = proxy(postgres15, auth=auth, users=users)
    with front.wire("app") as wire:
        assert wire.value("SELECT session_user") == "app"
    assert "28P01" in front.refusal("app", password="wrong")


def test_a_login_of_another_name_on_the_server(postgres15: Postgres, proxy: Maker) -> None:
    """`server_user` says as whom the proxy enters the database."""
    users = {"front": {"password": "door", "server_user": "old", "server_password": "old-secret"}}
    auth = ({"user": "front", "scheme": "file", "secret": "file:users.toml"},)
    front = proxy(postgres15, auth=auth, users=users)
    with front.wire("front", password="door") as wire:
        assert wire.value("SELECT session_user") == "old"


def test_a_wrong_password_towards_the_server_is_named_in_the_log(
    postgres15: Postgres, proxy: Maker
) -> None:
    """The client gets an error, the operator the server's own words, nobody the password."""
    users = {"app": {"password": "front-door", "server_password": "stale-secret"}}
    auth = ({"user": "app", "scheme": "file", "secret": "file:users.toml"},)
    front = proxy(postgres15, auth=auth, users=users, pool={"connection_borrow_timeout": "2s"})
    front.refusal("app", password="front-door")
    front.wait_log("password authentication failed")
    assert "stale-secret" not in front.log()


def test_a_database_that_a_user_may_not_use_is_refused(postgres15: Postgres, proxy: Maker) -> None:
    """`databases` limits a user to what it lists."""
    auth = ({"user": "guest", "scheme": "trust", "databases": ["test"]},)
    front = proxy(postgres15, auth=auth)
    with front.wire("guest") as wire:
        assert wire.value("SELECT current_database()") == "test"
    assert "login refused" in front.refusal("guest", database="postgres")


def test_a_login_storm_costs_no_key_derivation(postgres15: Postgres, proxy: Maker) -> None:
    """A thousand SCRAM logins and new servers: far less CPU than PBKDF2 would take for each."""
    front = proxy(postgres15)
    with front.wire("app") as wire:
        wire.value("SELECT 1")
    before = front.cpu_s()

    def work(_: int) -> None:
        for _ in range(50):
            front.wire("app").close()

    run_clients(20, work)
    each_s = (front.cpu_s() - before) / 1000
    assert each_s < 0.0008, (
        f"{each_s * 1e6:.0f} us a login; PBKDF2 of 4096 rounds takes 1000 to 2000"
    )
