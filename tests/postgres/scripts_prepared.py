"""Byte scripts of prepared statements and COPY: T29 to T33, T41, T42. Data only.

Next on the path: `test_parity_bytes.py`.
"""

from __future__ import annotations

from tests.postgres.parity import Direct, HalfClose, Login, Rest, Send, Step, Until, script
from tests.wire import (
    batch,
    bind,
    close,
    copy_data,
    copy_done,
    copy_fail,
    describe,
    execute,
    flush,
    parse,
    query,
    sync,
)

TABLE = "DROP TABLE IF EXISTS script; CREATE TABLE script (id int PRIMARY KEY)"
COUNT = Direct("SELECT count(*)::int FROM script")
COPY_IN = "COPY script FROM STDIN"


def use(name: str, who: str = "a") -> tuple[Step, ...]:
    """Return steps that bind and run a statement by name."""
    return (Send(bind("", name) + execute() + sync(), who=who), Until("Z", who=who))


def prepare(name: str, sql: str, who: str = "a") -> tuple[Step, ...]:
    """Return steps that prepare a statement by name."""
    return (Send(parse(name, sql) + sync(), who=who), Until("Z", who=who))


def ask(sql: str, who: str = "a") -> tuple[Step, ...]:
    """Return steps of one simple query."""
    return (Send(query(sql), who=who), Until("Z", who=who))


NAMES = (
    script(
        "T29 a failed Parse leaves its name free",
        *prepare("s", "SELEC"),
        *prepare("s", "SELECT 1"),
        *use("s"),
    ),
    script(
        "T29 a name that exists", *prepare("s", "SELECT 1"), *prepare("s", "SELECT 2"), *use("s")
    ),
    script(
        "T29 the same name and text again",
        *prepare("s", "SELECT 1"),
        *prepare("s", "SELECT 1"),
        *use("s"),
    ),
    script("T29 Bind of an unknown name", *use("none"), *ask("SELECT 1")),
    script(
        "T29 Describe of an unknown name",
        Send(describe("S", "none") + sync()),
        Until("Z"),
        *ask("SELECT 1"),
    ),
    script("T29 Bind of no unnamed statement", *use(""), *ask("SELECT 1")),
    script(
        "T29 Describe of a statement",
        *prepare("s", "SELECT $1::int, $2::text"),
        Send(describe("S", "s") + sync()),
        Until("Z"),
    ),
    script(
        "T29 the duplicate in one batch",
        Send(parse("s", "SELECT 1") + parse("s", "SELECT 2") + sync()),
        Until("Z"),
        *use("s"),
    ),
    script(
        "T29 an unknown name inside a transaction",
        *ask("BEGIN"),
        *use("none"),
        *ask("SELECT 1"),
        *ask("ROLLBACK"),
    ),
    script(
        "T29 a name in a failed transaction",
        *prepare("s", "SELECT 1"),
        *ask("BEGIN"),
        *ask("SELECT 1/0"),
        *use("s"),
        *prepare("t", "SELECT 2"),
        *ask("ROLLBACK"),
        *use("s"),
        *use("t"),
    ),
    script(
        "T29 Parse in a rolled-back transaction stays",
        *ask("BEGIN"),
        *prepare("s", "SELECT 1"),
        *ask("ROLLBACK"),
        *use("s"),
    ),
    script(
        "T29 Parse behind an error does not count",
        Send(parse("a", "SELEC") + parse("b", "SELECT 1") + sync()),
        Until("Z"),
        *use("b"),
    ),
    script(
        "T29 parameter types decide",
        Send(
            parse("s", "SELECT $1", [23])
            + parse("t", "SELECT $1", [25])
            + describe("S", "s")
            + describe("S", "t")
            + sync()
        ),
        Until("Z"),
    ),
    script(
        "T30 Close of an unknown name",
        Send(close("S", "none") + close("P", "none") + sync()),
        Until("Z"),
    ),
    script(
        "T30 Close then Parse of one name in a batch",
        *prepare("s", "SELECT 1"),
        Send(close("S", "s") + parse("s", "SELECT 2") + bind("", "s") + execute() + sync()),
        Until("Z"),
        *use("s"),
    ),
    script(
        "T30 a closed name is unknown",
        *prepare("s", "SELECT 1"),
        Send(close("S", "s") + sync()),
        Until("Z"),
        *use("s"),
    ),
    script(
        "T30 Close behind an error does not count",
        *prepare("s", "SELECT 1"),
        Send(parse("", "SELEC") + close("S", "s") + sync()),
        Until("Z"),
        *use("s"),
    ),
    script(
        "T30 Close of the unnamed statement",
        Send(parse("", "SELECT 1") + close("S") + bind() + execute() + sync()),
        Until("Z"),
    ),
    script(
        "T30 Parse, use and Close in each of many batches",
        Send(
            b"".join(
                parse("s", f"SELECT {n}") + bind("", "s") + execute() + close("S", "s") + sync()
                for n in range(20)
            )
        ),
        Until("Z", 20),
    ),
)

MANY = (
    script(
        "T31 ten statements in one batch",
        Send(
            b"".join(parse(f"s{n}", f"SELECT {n}") for n in range(10))
            + b"".join(bind("", f"s{n}") + execute() for n in range(10))
            + sync()
        ),
        Until("Z"),
        Send(b"".join(bind("", f"s{n}") + execute() for n in (9, 0, 5)) + sync()),
        Until("Z"),
    ),
    script(
        "T31 ten statements prepared one by one",
        *(step for n in range(10) for step in prepare(f"s{n}", f"SELECT {n}")),
        Send(b"".join(bind("", f"s{n % 10}") + execute() for n in range(30)) + sync()),
        Until("Z"),
    ),
)


def forgotten(*steps: Step) -> tuple[Step, ...]:
    """Return steps that prepare two statements, do something, and use both."""
    return (*prepare("s", "SELECT 1"), *prepare("t", "SELECT 2"), *steps, *use("s"), *use("t"))


RESETS = (
    *(
        script(f"T32 {text} by simple Query", *forgotten(*ask(text)))
        for text in ("DEALLOCATE s", "DEALLOCATE ALL", "DISCARD ALL", "DISCARD PLANS")
    ),
    *(
        script(f"T32 {text} by extended query", *forgotten(Send(batch(text)), Until("Z")))
        for text in ("DEALLOCATE s", "DEALLOCATE ALL", "DISCARD ALL", "DISCARD PLANS")
    ),
    script(
        "T32 DEALLOCATE ALL inside a batch",
        *prepare("s", "SELECT 1"),
        Send(
            batch("DEALLOCATE ALL", end=b"")
            + parse("t", "SELECT 3")
            + bind("", "t")
            + execute()
            + sync()
        ),
        Until("Z"),
        *use("s"),
        *use("t"),
    ),
    script(
        "T32 DEALLOCATE ALL in a transaction that rolls back",
        *prepare("s", "SELECT 1"),
        *ask("BEGIN"),
        *ask("DEALLOCATE ALL"),
        *ask("ROLLBACK"),
        *use("s"),
    ),
    script(
        "T32 DEALLOCATE ALL in a failed transaction",
        *prepare("s", "SELECT 1"),
        *ask("BEGIN"),
        *ask("SELECT 1/0"),
        *ask("DEALLOCATE ALL"),
        *ask("ROLLBACK"),
        *use("s"),
    ),
    script(
        "T32 DISCARD ALL in a transaction",
        *prepare("s", "SELECT 1"),
        *ask("BEGIN"),
        *ask("DISCARD ALL"),
        *ask("ROLLBACK"),
        *use("s"),
    ),
    script("T32 DEALLOCATE of an unknown name", *ask("DEALLOCATE none"), *ask("SELECT 1")),
    script(
        "T32 DEALLOCATE ALL between other statements",
        *prepare("s", "SELECT 1"),
        *ask("SELECT 1; DEALLOCATE ALL; SELECT 2"),
        *use("s"),
    ),
    script(
        "T33 SQL PREPARE of one name by two clients",
        Login(who="b"),
        *ask("PREPARE s AS SELECT 1"),
        *ask("PREPARE s AS SELECT 2", "b"),
        *ask("EXECUTE s"),
        *ask("EXECUTE s", "b"),
        *ask("DEALLOCATE s"),
        *ask("EXECUTE s", "b"),
    ),
    script(
        "T33 EXECUTE of a statement of the protocol", *prepare("s", "SELECT 5"), *ask("EXECUTE s")
    ),
    script("T33 Bind of a statement of SQL", *ask("PREPARE s AS SELECT 6"), *use("s")),
    script(
        "T33 one protocol name by two clients",
        Login(who="b"),
        *prepare("s", "SELECT 1"),
        *prepare("s", "SELECT 2", "b"),
        *use("s"),
        *use("s", "b"),
        Send(close("S", "s") + sync()),
        Until("Z"),
        *use("s", "b"),
        *use("s"),
    ),
)

COPY = (
    script(
        "T41 COPY IN",
        Send(query(COPY_IN)),
        Until("G"),
        Send(copy_data(b"1\n2\n") + copy_data(b"3\n") + copy_done()),
        Until("Z"),
        COUNT,
        before=TABLE,
    ),
    script(
        "T41 COPY IN, all in one write",
        Send(query(COPY_IN) + copy_data(b"1\n2\n") + copy_done() + query("SELECT 1")),
        Until("Z", 2),
        COUNT,
        before=TABLE,
    ),
    script(
        "T41 an error before CopyDone",
        Send(query(COPY_IN)),
        Until("G"),
        Send(copy_data(b"word\n")),
        Until("Z"),
        Send(copy_data(b"2\n") + copy_done() + query("SELECT 1")),
        Until("Z"),
        COUNT,
        before=TABLE,
    ),
    script(
        "T41 an error at CopyDone",
        Send(query(COPY_IN)),
        Until("G"),
        Send(copy_data(b"1\n1\n") + copy_done()),
        Until("Z"),
        *ask("SELECT 1"),
        COUNT,
        before=TABLE,
    ),
    script(
        "T41 CopyFail",
        Send(query(COPY_IN)),
        Until("G"),
        Send(copy_data(b"1\n") + copy_fail("no more")),
        Until("Z"),
        *ask("SELECT 1"),
        COUNT,
        before=TABLE,
    ),
    script(
        "T41 late CopyData after the error is dropped",
        Send(query(COPY_IN)),
        Until("G"),
        Send(copy_data(b"word\n")),
        Until("Z"),
        Send(copy_data(b"1\n") * 100),
        Send(copy_done()),
        *ask("SELECT 2"),
        COUNT,
        before=TABLE,
    ),
    script(
        "T41 CopyData without COPY is ignored",
        Send(copy_data(b"1\n") + copy_done() + copy_fail("x") + query("SELECT 1")),
        Until("Z"),
        before=TABLE,
    ),
    script(
        "T41 a query inside COPY IN ends it",
        Send(query(COPY_IN)),
        Until("G"),
        Send(query("SELECT 1")),
        Rest(),
        COUNT,
        before=TABLE,
    ),
    script(
        "T41 extended COPY with Sync before CopyDone",
        Send(parse("", COPY_IN) + bind() + execute() + sync()),
        Until("G"),
        Send(copy_data(b"1\n") + copy_done() + sync()),
        Until("Z"),
        COUNT,
        before=TABLE,
    ),
    script(
        "T41 extended COPY with Sync after CopyDone",
        Send(parse("", COPY_IN) + bind() + execute() + flush()),
        Until("G"),
        Send(copy_data(b"1\n") + copy_done() + sync()),
        Until("Z"),
        COUNT,
        before=TABLE,
    ),
    script(
        "T41 extended COPY that fails",
        Send(parse("", COPY_IN) + bind() + execute() + flush()),
        Until("G"),
        Send(copy_data(b"word\n") + copy_done() + sync()),
        Until("Z"),
        *ask("SELECT 1"),
        COUNT,
        before=TABLE,
    ),
    script(
        "T41 extended COPY with CopyFail",
        Send(parse("", COPY_IN) + bind() + execute() + flush()),
        Until("G"),
        Send(copy_fail("no") + sync()),
        Until("Z"),
        *ask("SELECT 1"),
        COUNT,
        before=TABLE,
    ),
    script(
        "T41 COPY IN of a table that is not there",
        Send(
            query("COPY nothing FROM STDIN") + copy_data(b"1\n") + copy_done() + query("SELECT 1")
        ),
        Until("Z", 2),
    ),
    script(
        "T41 FIN inside COPY IN leaves no row",
        Send(query(COPY_IN)),
        Until("G"),
        Send(copy_data(b"1\n")),
        HalfClose(),
        Rest(),
        COUNT,
        before=TABLE,
    ),
    script(
        "T41 COPY IN inside a transaction",
        *ask("BEGIN"),
        Send(query(COPY_IN)),
        Until("G"),
        Send(copy_data(b"1\n") + copy_done()),
        Until("Z"),
        *ask("ROLLBACK"),
        COUNT,
        before=TABLE,
    ),
    script("T42 COPY OUT", *ask("COPY (SELECT generate_series(1, 5000)) TO STDOUT")),
    script(
        "T42 extended COPY OUT",
        Send(batch("COPY (SELECT generate_series(1, 50)) TO STDOUT")),
        Until("Z"),
    ),
    script(
        "T42 COPY OUT that fails in the middle",
        *ask("COPY (SELECT 1/(3 - g) FROM generate_series(1, 5) g) TO STDOUT"),
        *ask("SELECT 1"),
    ),
    script("T42 COPY OUT of a line of 8 MiB", *ask("COPY (SELECT repeat('x', 8 << 20)) TO STDOUT")),
    script(
        "T42 COPY inside several statements",
        Send(query(f"SELECT 1; {COPY_IN}; SELECT 2; COPY script TO STDOUT; SELECT 3")),
        Until("G"),
        Send(copy_data(b"7\n") + copy_done()),
        Until("Z"),
        COUNT,
        before=TABLE,
    ),
    script(
        "T42 two COPY IN in one Query",
        Send(query(f"{COPY_IN}; {COPY_IN}")),
        Until("G"),
        Send(copy_data(b"1\n") + copy_done()),
        Until("G"),
        Send(copy_data(b"2\n") + copy_done()),
        Until("Z"),
        COUNT,
        before=TABLE,
    ),
    script("T42 binary COPY", *ask("COPY (SELECT 1::int4, 'a'::text) TO STDOUT (FORMAT binary)")),
)

SCRIPTS = NAMES + MANY + RESETS + COPY
