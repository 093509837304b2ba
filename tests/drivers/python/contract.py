"""The contract of `README.md` for the Python programs: settings, units of work, the report.

Not here: any driver. A program makes a `Program` and calls `run_threads` or `run_tasks`. Next on
the path: `psycopg3.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

STEPS = ("connect", "prepared", "pipeline", "copy", "transaction", "error", "cancel")
ERRORS_SHOWN = 5
TURNS = 7
TEXTS = 3
STATEMENTS = 10
ROWS = 100
BESIDE = 5
SLEEPER_EVERY = 5
SLEEP = "SELECT pg_sleep(30)"
CUT_AFTER_S = 0.3
CUT_AGAIN_S = 2.0
CUT_WITHIN_S = 10.0
COPY_IN = "COPY copied FROM STDIN"
KEEP = ("committed", "outer")

P = TypeVar("P")
Work = Callable[[P, int], None] | str
AsyncWork = Callable[[P, int], Awaitable[None]] | str


class WrongResultError(Exception):
    """A result that is not the client's own."""


@dataclass(frozen=True)
class Where:
    """What to connect to in one step, and with how many clients."""

    host: str
    port: int
    user: str
    password: str
    database: str
    clients: int
    rounds: int

    def url(self, scheme: str = "postgresql") -> str:
        """Return the address as a URL."""
        login = f"{self.user}:{self.password}"
        return f"{scheme}://{login}@{self.host}:{self.port}/{self.database}"


def where(step: str) -> Where:
    """Return the settings of a step, from the environment."""
    given = os.environ
    return Where(
        given["PGHOST"],
        int(given["PGPORT"]),
        given["PGUSER"],
        given["PGPASSWORD"],
        f"{given['PGDATABASE']}_{step}",
        int(given.get("DRIVER_CLIENTS", "50")),
        int(given.get("DRIVER_ROUNDS", "2")),
    )


@dataclass(frozen=True)
class Program(Generic[P]):
    """One driver's steps; a text in place of a function says why the driver has none.

    `pool` opens the usual pool, `connect` gets `Where` and a tag, the others the pool and a tag;
    `sleeper` is cut off in `pg_sleep`, `beside` works meanwhile.
    """

    driver: str
    version: str
    pool_name: str
    pool: Callable[[Where], AbstractContextManager[P]]
    connect: Work[Where]
    prepared: Work[P]
    pipeline: Work[P]
    copy: Work[P]
    transaction: Work[P]
    error: Work[P]
    sleeper: Work[P]
    beside: Work[P]


@dataclass(frozen=True)
class AsyncProgram(Generic[P]):
    """The same as `Program` with coroutines."""

    driver: str
    version: str
    pool_name: str
    pool: Callable[[Where], AbstractAsyncContextManager[P]]
    connect: AsyncWork[Where]
    prepared: AsyncWork[P]
    pipeline: AsyncWork[P]
    copy: AsyncWork[P]
    transaction: AsyncWork[P]
    error: AsyncWork[P]
    sleeper: AsyncWork[P]
    beside: AsyncWork[P]


class Tally:
    """Counts units that went well and collects what did not."""

    def __init__(self) -> None:
        """Begin with nothing done."""
        self.lock = threading.Lock()
        self.begun = time.monotonic()
        self.done = 0
        self.failed = 0
        self.errors: list[str] = []

    @contextmanager
    def unit(self) -> Iterator[None]:
        """Count the block as done, or keep its error."""
        try:
            yield
        except Exception as error:
            with self.lock:
                self.failed += 1
                self.errors.append(f"{type(error).__name__}: {error}"[:400])
        else:
            with self.lock:
                self.done += 1

    def report(self, step: str) -> None:
        """Print the step's line."""
        shown = self.errors[:ERRORS_SHOWN]
        if self.failed > len(shown):
            shown.append(f"and {self.failed - len(shown)} more")
        seconds = round(time.monotonic() - self.begun, 2)
        say(step=step, done=self.done, errors=shown, seconds=seconds)


def say(**fields: Any) -> None:
    """Print one JSON line."""
    print(json.dumps(fields), flush=True)


def chosen(program: Any, step: str, client: int) -> Any:
    """Return the work of a client in a step: a function, or the reason why there is none."""
    if step != "cancel":
        return getattr(program, step)
    sleeps = client % SLEEPER_EVERY == 0
    return program.sleeper if sleeps else program.beside


def run_threads(program: Program[Any]) -> None:
    """Run all steps, a thread a client."""
    say(driver=program.driver, version=program.version, pool=program.pool_name)
    for step in STEPS:
        reason = chosen(program, step, 0)
        if isinstance(reason, str):
            say(step=step, unsupported=reason)
            continue
        _step_threads(program, step)


def _step_threads(program: Program[Any], step: str) -> None:
    place, tally = where(step), Tally()

    def client(number: int, pool: Any) -> None:
        work = chosen(program, step, number)
        for turn in range(place.rounds):
            with tally.unit():
                work(pool, number * 1000 + turn)

    def all_clients(pool: Any) -> None:
        with ThreadPoolExecutor(place.clients) as threads:
            for number in range(place.clients):
                threads.submit(client, number, pool)

    if step == "connect":
        all_clients(place)
    else:
        with program.pool(place) as pool:
            all_clients(pool)
    tally.report(step)


async def run_tasks(program: AsyncProgram[Any]) -> None:
    """Run all steps, a task a client."""
    say(driver=program.driver, version=program.version, pool=program.pool_name)
    for step in STEPS:
        reason = chosen(program, step, 0)
        if isinstance(reason, str):
            say(step=step, unsupported=reason)
            continue
        await _step_tasks(program, step)


async def _step_tasks(program: AsyncProgram[Any], step: str) -> None:
    place, tally = where(step), Tally()

    async def client(number: int, pool: Any) -> None:
        work = chosen(program, step, number)
        for turn in range(place.rounds):
            with tally.unit():
                await work(pool, number * 1000 + turn)

    async def all_clients(pool: Any) -> None:
        await asyncio.gather(*(client(number, pool) for number in range(place.clients)))

    if step == "connect":
        await all_clients(place)
    else:
        async with program.pool(place) as pool:
            await all_clients(pool)
    tally.report(step)


def expect(got: Any, wanted: Any) -> None:
    """Check a result by value."""
    if got != wanted:
        raise WrongResultError(f"{got!r:.150} instead of {wanted!r:.150}")


def prepared_turns(tag: int, placeholder: str) -> Iterator[tuple[str, int, tuple[int, str]]]:
    """Give (text, its parameter, the row it must give) for all turns and texts."""
    for turn in range(TURNS):
        for text in range(TEXTS):
            value = tag * 100 + turn
            yield f"SELECT {placeholder}, 'text {text}'", value, (value, f"text {text}")


def copy_rows(tag: int) -> list[tuple[int, int, str]]:
    """Return the rows that a client copies in and out."""
    return [(tag, n, f"note {tag} {n}") for n in range(ROWS)]


def copy_text(tag: int) -> str:
    """Return these rows in COPY's text format."""
    return "".join(f"{tag}\t{n}\t{note}\n" for tag, n, note in copy_rows(tag))


def copy_out(tag: int) -> str:
    """Return the statement that reads them back."""
    return f"COPY (SELECT tag, n, note FROM copied WHERE tag = {tag} ORDER BY n) TO STDOUT"


def check_error(call: Callable[[], Any], sqlstate: str) -> None:
    """Check that a call fails with an SQLSTATE."""
    try:
        call()
    except Exception as error:
        expect(sqlstate_of(error), sqlstate)
        return
    raise WrongResultError(f"no error, but {sqlstate} was due")


async def check_error_async(call: Awaitable[Any], sqlstate: str) -> None:
    """Check that an awaitable fails with an SQLSTATE."""
    try:
        await call
    except Exception as error:
        expect(sqlstate_of(error), sqlstate)
        return
    raise WrongResultError(f"no error, but {sqlstate} was due")


def sqlstate_of(error: BaseException | None) -> str:
    """Return the SQLSTATE of a driver's error or of what it was made from, else the error."""
    inner = error
    while inner is not None:
        for name in ("sqlstate", "pgcode"):
            if found := getattr(inner, name, None):
                return str(found)
        if inner.args and isinstance(inner.args[0], dict) and "C" in inner.args[0]:
            return str(inner.args[0]["C"])
        inner = getattr(inner, "orig", None) or inner.__cause__
    return repr(error)


@contextmanager
def cut_off(cancel: Callable[[], None]) -> Iterator[None]:
    """Call `cancel` after `CUT_AFTER_S`; the block must end in time, and ends after the call.

    It is called again if the block goes on: a starved program may have sent the first before the
    statement.
    """
    begun = time.monotonic()
    ended = threading.Event()

    def cut() -> None:
        pause = CUT_AFTER_S
        while not ended.wait(pause):
            cancel()
            pause = CUT_AGAIN_S

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if time.monotonic() - begun > CUT_WITHIN_S:
        raise WrongResultError("the statement was not cut off")
