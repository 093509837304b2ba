"""Byte scripts of messages, pipelines and transactions: T14 to T23. Data only.

Next on the path: `scripts_prepared.py`.
"""

from __future__ import annotations

import struct

from tests.postgres.parity import Direct, Rest, Script, Send, Step, Until, script
from tests.wire import (
    batch,
    bind,
    close,
    describe,
    execute,
    flush,
    function_call,
    message,
    parse,
    query,
    sync,
    terminate,
)

TABLE = "DROP TABLE IF EXISTS script; CREATE TABLE script (id int PRIMARY KEY)"
COUNT = Direct("SELECT count(*)::int FROM script")


def claimed(tag: str, size: int) -> bytes:
    """Return the head of a message that claims a length."""
    return tag.encode() + struct.pack("!I", size & 0xFFFFFFFF)


def killed(name: str, data: bytes) -> Script:
    """Return a script whose bytes end the connection."""
    return script(name, Send(data), Rest())


def asked(name: str, *texts: str, before: str = "", after: tuple[Step, ...] = ()) -> Script:
    """Return a script of simple queries, one after the other."""
    steps: list[Step] = []
    for text in texts:
        steps += [Send(query(text)), Until("Z")]
    return script(name, *steps, *after, before=before)


BROKEN = (
    killed("T14 length 0", claimed("Q", 0)),
    killed("T14 length 3", claimed("Q", 3)),
    killed("T14 length negative", claimed("Q", -1)),
    killed("T14 length 2^31-1", claimed("Q", 2**31 - 1)),
    killed("T14 length 3 of a Sync", claimed("S", 3)),
    killed("T14 unknown type", message("y")),
    killed("T14 unknown type NUL", message("\0")),
    killed("T14 a server's message type", message("Z", b"I")),
)

MALFORMED = (
    script("T14 Query without a NUL", Send(message("Q", b"SELECT 1")), Until("Z")),
    script("T14 Query with bytes behind its NUL", Send(message("Q", b"SELECT 1\0x")), Until("Z")),
    script("T14 Sync with a body", Send(message("S", b"x")), Until("Z")),
    script("T14 Parse without a NUL", Send(message("P", b"name") + sync()), Until("Z")),
    script(
        "T14 Parse with too many types",
        Send(message("P", b"\0SELECT 1\0\0\x05") + sync()),
        Until("Z"),
    ),
    script("T14 Bind cut short", Send(message("B", b"\0\0\0") + sync()), Until("Z")),
    script("T14 Describe of a kind that is none", Send(describe("X") + sync()), Until("Z")),
    script("T14 Close of a kind that is none", Send(close("X") + sync()), Until("Z")),
    script("T14 Execute cut short", Send(message("E", b"\0\0") + sync()), Until("Z")),
    script(
        "T14 Parse with bytes behind",
        Send(message("P", b"\0SELECT 1\0\0\0xx") + sync()),
        Until("Z"),
    ),
    script("T14 text that is not UTF-8", Send(query(b"SELECT '\xff'")), Until("Z")),
)

BIG = "x" * (1 << 20)

SIZES = (
    asked("T15 Query of 5 KiB", f"SELECT length('{BIG[:5000]}')"),
    asked("T15 Query of 1 MiB", f"SELECT length('{BIG}')"),
    asked("T15 DataRow of 1 MiB", "SELECT repeat('x', 1 << 20)"),
    asked("T15 DataRow of 16 MiB", "SELECT repeat('x', 16 << 20)"),
    asked("T15 many rows", "SELECT g, repeat('y', g % 300) FROM generate_series(1, 20000) g"),
    script("T15 Parse of 5 KiB", Send(batch(f"SELECT length('{BIG[:5000]}')")), Until("Z")),
    script("T15 Parse of 1 MiB", Send(batch(f"SELECT length('{BIG}')")), Until("Z")),
    script(
        "T15 named Parse of 100 kB",
        Send(batch(f"SELECT length('{BIG[:100000]}')", name="big")),
        Until("Z"),
    ),
    script("T15 Bind of 1 MiB", Send(batch("SELECT length($1::text)", [BIG.encode()])), Until("Z")),
    script(
        "T15 named Bind of 1 MiB",
        Send(batch("SELECT length($1::text)", [BIG.encode()], name="n")),
        Until("Z"),
    ),
    script("T15 statement name of 5 kB", Send(batch("SELECT 1", name="n" * 5000)), Until("Z")),
    script(
        "T15 one byte at a time",
        Send(batch("SELECT $1::text", [b"value"], name="split"), piece=1),
        Until("Z"),
    ),
    script(
        "T15 pieces of 7 bytes",
        Send(batch("SELECT $1::text", [b"value"], name="split") * 5, piece=7),
        Until("Z", 5),
    ),
    script(
        "T15 two messages in pieces of 3",
        Send(query("SELECT 1") + query("SELECT 2"), piece=3),
        Until("Z", 2),
    ),
)

PIPELINES = (
    script(
        "T16 ten batches with ten Syncs in one write",
        Send(b"".join(batch("SELECT $1::int", [b"%d" % n]) for n in range(10))),
        Until("Z", 10),
    ),
    script(
        "T16 ten named batches with ten Syncs in one write",
        Send(b"".join(batch(f"SELECT $1::int + {n}", [b"1"], name=f"s{n}") for n in range(10))),
        Until("Z", 10),
        Send(b"".join(bind("", f"s{n}", [b"2"]) + execute() + sync() for n in range(10))),
        Until("Z", 10),
    ),
    script("T16 five hundred Syncs in one write", Send(batch("SELECT 1") * 500), Until("Z", 500)),
    script(
        "T16 simple queries in one write",
        Send(b"".join(query(f"SELECT {n}") for n in range(20))),
        Until("Z", 20),
    ),
    script(
        "T17 an error in batch 3 of 10",
        Send(b"".join(batch("SELECT 1/$1::int", [b"%d" % (n != 2)]) for n in range(10))),
        Until("Z", 10),
    ),
    script(
        "T17 an error in batch 3 of 10 inside a transaction",
        Send(
            query("BEGIN")
            + b"".join(batch("SELECT 1/$1::int", [b"%d" % (n != 2)]) for n in range(10))
            + query("ROLLBACK")
        ),
        Until("Z", 12),
    ),
    script(
        "T17 what follows an error is skipped to the Sync",
        Send(
            parse("", "SELECT nothing")
            + bind()
            + execute()
            + close("S", "x")
            + batch("SELECT 2")
            + batch("SELECT 3")
        ),
        Until("Z", 2),
    ),
)


def fails_at(where: str, data: bytes) -> Script:
    """Return a script whose batch fails: the error must come before any Sync or Flush is sent."""
    return script(
        f"T18 an error at {where} comes at once",
        Send(data),
        Until("E"),
        Send(parse("later", "SELECT 1") + bind("", "later") + execute()),
        Send(sync()),
        Until("Z"),
        Send(bind("", "later") + sync()),
        Until("Z"),
    )


ERRORS = (
    fails_at("Parse", parse("bad", "SELEC 1")),
    fails_at("Bind", parse("ok", "SELECT $1::int") + bind("", "ok", [b"none"])),
    fails_at("Describe", parse("ok", "SELECT 1") + describe("P", "none")),
    fails_at("Execute", parse("ok", "SELECT 1/$1::int") + bind("", "ok", [b"0"]) + execute()),
    script(
        "T18 a known statement is not acknowledged behind an error",
        Send(parse("known", "SELECT 42") + sync()),
        Until("Z"),
        Send(
            parse("", "SELEC")
            + parse("other", "SELECT 42")
            + bind("", "other")
            + execute()
            + sync()
        ),
        Until("Z"),
        Send(bind("", "other") + execute() + sync()),
        Until("Z"),
        Send(bind("", "known") + execute() + sync()),
        Until("Z"),
    ),
)

FLUSHES = (
    script(
        "T19 Flush in place of Sync, then Sync",
        Send(batch("SELECT 1", end=flush())),
        Until("C"),
        Send(bind() + execute() + flush()),
        Until("C"),
        Send(sync()),
        Until("Z"),
    ),
    script(
        "T19 Flush after each message",
        Send(parse("", "SELECT $1::int") + flush()),
        Until("1"),
        Send(bind("", "", [b"7"]) + flush()),
        Until("2"),
        Send(describe("P") + flush()),
        Until("T"),
        Send(execute() + flush()),
        Until("C"),
        Send(sync()),
        Until("Z"),
    ),
    script("T20 Sync alone", Send(sync()), Until("Z")),
    script("T20 Flush alone, then a query", Send(flush() + query("SELECT 1")), Until("Z")),
    script("T20 many Syncs", Send(sync() * 50), Until("Z", 50)),
    script("T20 Query then Sync", Send(query("SELECT 1") + sync()), Until("Z", 2)),
    script(
        "T20 simple Query inside an open batch",
        Send(parse("", "SELECT 1") + bind() + execute() + query("SELECT 2") + sync()),
        Until("Z", 2),
    ),
    script(
        "T20 a simple Query drops the unnamed statement",
        Send(parse("", "SELECT 1") + sync() + query("SELECT 2") + bind() + execute() + sync()),
        Until("Z", 3),
    ),
    script(
        "T20 the unnamed statement lives over Syncs",
        Send(parse("", "SELECT 1") + sync()),
        Until("Z"),
        Send(bind() + execute() + sync()),
        Until("Z"),
    ),
)

SERIES = "SELECT g FROM generate_series(1, 7) g"

PORTALS = (
    script(
        "T21 max_rows suspends the portal and it goes on",
        Send(parse("", SERIES) + bind() + execute("", 3) + flush()),
        Until("s"),
        Send(execute("", 3) + flush()),
        Until("s"),
        Send(execute("", 3) + sync()),
        Until("Z"),
    ),
    script(
        "T21 a portal by name over batches of one transaction",
        Send(query("BEGIN") + parse("", SERIES) + bind("p") + execute("p", 2) + sync()),
        Until("Z", 2),
        Send(execute("p", 2) + sync()),
        Until("Z"),
        Send(describe("P", "p") + execute("p") + close("P", "p") + sync()),
        Until("Z"),
        Send(execute("p") + sync()),
        Until("Z"),
        Send(query("COMMIT")),
        Until("Z"),
    ),
    script(
        "T21 two open portals",
        Send(query("BEGIN") + parse("", SERIES) + bind("p") + bind("q")),
        Send((execute("p", 1) + execute("q", 2)) * 3 + sync() + query("END")),
        Until("Z", 3),
    ),
    script(
        "T21 a portal ends with its transaction",
        Send(batch(SERIES) + execute() + sync()),
        Until("Z", 2),
    ),
)

TRANSACTIONS = (
    asked("T22 empty query", ""),
    asked("T22 nothing but a semicolon", ";"),
    asked("T22 nothing but a comment", "-- nothing"),
    script("T22 empty query, extended", Send(batch("")), Until("Z")),
    asked("T22 several statements, the second fails", "SELECT 1; SELECT 1/0; SELECT 3"),
    asked("T22 BEGIN inside several statements", "SELECT 1; BEGIN; SELECT 2", "SELECT 3; COMMIT"),
    asked("T22 BEGIN twice", "BEGIN", "BEGIN", "COMMIT"),
    asked("T22 COMMIT without BEGIN", "COMMIT", "ROLLBACK"),
    asked(
        "T22 COMMIT AND CHAIN",
        "BEGIN",
        "COMMIT AND CHAIN",
        "SELECT 1",
        "ROLLBACK AND CHAIN",
        "ROLLBACK",
    ),
    asked(
        "T22 savepoints",
        "BEGIN",
        "SAVEPOINT a",
        "SELECT 1/0",
        "SELECT 1",
        "ROLLBACK TO a",
        "SELECT 2",
        "COMMIT",
    ),
    asked("T22 a failed transaction commits as ROLLBACK", "BEGIN", "SELECT 1/0", "COMMIT"),
    asked("T22 notices", "DO $$BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END$$"),
    asked("T22 an error with all its fields", "INSERT INTO script VALUES (1), (1)", before=TABLE),
    script(
        "T22 an implicit transaction of a pipeline leaves no row",
        Send(
            parse("", "INSERT INTO script VALUES (1)")
            + bind()
            + execute()
            + parse("", "INSERT INTO script VALUES (2)")
            + bind()
            + execute()
            + parse("", "SELECT 1/0")
            + bind()
            + execute()
            + sync()
        ),
        Until("Z"),
        COUNT,
        before=TABLE,
    ),
    script(
        "T22 batches of one write commit each for itself",
        Send(b"".join(batch("INSERT INTO script VALUES ($1)", [v]) for v in (b"1", b"1", b"2"))),
        Until("Z", 3),
        COUNT,
        before=TABLE,
    ),
    script(
        "T22 Terminate right behind a commit",
        Send(query("INSERT INTO script VALUES (5)") + terminate()),
        Rest(),
        COUNT,
        before=TABLE,
    ),
)

FASTPATH = (
    script("T23 fastpath call", Send(function_call(1397, [struct.pack("!i", -5)])), Until("Z")),
    script("T23 fastpath call that fails", Send(function_call(4_000_000_000, [])), Until("Z")),
    script(
        "T23 fastpath calls inside a transaction and a pipeline",
        Send(
            query("BEGIN")
            + function_call(1397, [struct.pack("!i", -6)])
            + function_call(1, [])
            + query("COMMIT")
        ),
        Until("Z", 4),
    ),
)

SCRIPTS = (
    BROKEN + MALFORMED + SIZES + PIPELINES + ERRORS + FLUSHES + PORTALS + TRANSACTIONS + FASTPATH
)
