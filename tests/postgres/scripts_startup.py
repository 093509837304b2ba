"""Byte scripts of the front door: T4 to T7. Data only; `parity.py` says what a step does.

Next on the path: `scripts_messages.py`.
"""

from __future__ import annotations

import struct

from tests.postgres.parity import Exactly, Login, Open, Rest, Script, Send, Until, script
from tests.wire import (
    GSSENC_REQUEST,
    SSL_REQUEST,
    cstring,
    query,
    startup,
    sync,
    terminate,
)

POSTGRES = {"user": "postgres", "database": "test"}
VERSION_3_0 = struct.pack("!I", 0x30000)


def length(claimed: int, body: bytes = b"") -> bytes:
    """Return a start-up packet with a claimed length."""
    return struct.pack("!I", claimed & 0xFFFFFFFF) + body


def refused(name: str, packet: bytes) -> Script:
    """Return a script that sends one packet and reads to the end of the stream."""
    return script(name, Open(), Send(packet), Rest(), logged_in=False)


def accepted(name: str, packet: bytes, piece: int = 0) -> Script:
    """Return a script that logs in with one packet and runs one query."""
    return script(
        name,
        Open(),
        Send(packet, piece=piece),
        Until("Z"),
        Send(query("SELECT current_user, current_database()")),
        Until("Z"),
        logged_in=False,
    )


def with_options(name: str, options: str, ask: str) -> Script:
    """Return a script that logs in with `options` and asks for a setting."""
    return script(
        name,
        Login(parameters=(("options", options),)),
        Send(query(ask)),
        Until("Z"),
        logged_in=False,
    )


LENGTHS = (
    refused("T4 start-up length 0", length(0, VERSION_3_0)),
    refused("T4 start-up length 4", length(4, VERSION_3_0)),
    refused("T4 start-up length 7", length(7, VERSION_3_0)),
    refused("T4 start-up length 8 without parameters", length(8, VERSION_3_0)),
    refused("T4 start-up length 10005", length(10_005, VERSION_3_0)),
    accepted("T4 start-up of 9000 bytes", startup(POSTGRES | {"my.long": "x" * 8900})),
    refused("T4 start-up length 2^31-1", length(2**31 - 1, VERSION_3_0)),
    refused("T4 start-up length negative", length(-1, VERSION_3_0)),
    accepted("T4 start-up one byte at a time", startup(POSTGRES), piece=1),
    script(
        "T4 SSLRequest is answered N, then the start-up",
        Open(),
        Send(SSL_REQUEST),
        Exactly(1),
        Send(startup(POSTGRES)),
        Until("Z"),
        logged_in=False,
    ),
    script(
        "T4 GSSENCRequest then SSLRequest are each answered N",
        Open(),
        Send(GSSENC_REQUEST),
        Exactly(1),
        Send(SSL_REQUEST),
        Exactly(1),
        logged_in=False,
    ),
)

NAMES = (
    refused("T5 no final NUL", startup(b"user\0postgres\0")),
    refused("T5 odd key without a value", startup(b"user\0postgres\0database\0\0")),
    refused("T5 no user", startup(b"database\0test\0\0")),
    refused("T5 empty user", startup({"user": "", "database": "test"})),
    refused("T5 nothing but the terminator", startup(b"\0")),
    accepted(
        "T5 empty database means the user's name", startup({"user": "postgres", "database": ""})
    ),
    accepted("T5 no database means the user's name", startup({"user": "postgres"})),
    refused("T5 unknown database", startup(POSTGRES | {"database": "nowhere"})),
    refused("T5 database name of 63 bytes", startup(POSTGRES | {"database": "d" * 63})),
    refused("T5 database name of 64 bytes", startup(POSTGRES | {"database": "d" * 64})),
    refused("T5 database name of 5000 bytes", startup(POSTGRES | {"database": "d" * 5000})),
    refused(
        "T5 database name that is not UTF-8",
        startup(cstring("user") + cstring("postgres") + b"database\0\xff\xfe\0\0"),
    ),
    refused("T5 bytes behind the terminator", startup(b"user\0postgres\0\0more\0")),
    script(
        "T5 the first of a pipelined start-up and queries",
        Open(),
        Send(startup(POSTGRES) + query("SELECT 1") + sync() + terminate()),
        Rest(),
        logged_in=False,
    ),
)

VERSIONS = (
    refused("T6 version 2.0", startup(POSTGRES, 0x20000)),
    refused("T6 version 4.0", startup(POSTGRES, 0x40000)),
    accepted("T6 version 3.1", startup(POSTGRES, 0x30001)),
    accepted("T6 version 3.2", startup(POSTGRES, 0x30002)),
    accepted("T6 version 3.99", startup(POSTGRES, 0x30063)),
    accepted("T6 protocol option", startup(POSTGRES | {"_pq_.x": "1"})),
    accepted(
        "T6 protocol options and 3.99", startup(POSTGRES | {"_pq_.x": "1", "_pq_.y": ""}, 0x30063)
    ),
)

OPTIONS = (
    with_options("T7 -c a=b", "-c work_mem=5MB", "SHOW work_mem"),
    with_options("T7 --a=b", "--work-mem=6MB", "SHOW work_mem"),
    with_options("T7 two options", "-c work_mem=7MB -c enable_seqscan=off", "SHOW enable_seqscan"),
    with_options("T7 escaped blanks", "-c application_name=a\\ b\\\\c", "SHOW application_name"),
    with_options("T7 plus sign", "-c application_name=a+b", "SHOW application_name"),
    with_options("T7 custom name", "-c my.tenant=blue", "SHOW my.tenant"),
    refused("T7 unknown setting", startup(POSTGRES | {"options": "-c no_such_setting=1"})),
    refused("T7 setting with a bad value", startup(POSTGRES | {"options": "-c work_mem=much"})),
    refused(
        "T7 setting of the server only", startup(POSTGRES | {"options": "-c max_connections=9"})
    ),
    script(
        "T7 start-up parameters are in force and reported",
        Login(
            parameters=(
                ("application_name", "script"),
                ("DateStyle", "SQL, DMY"),
                ("TimeZone", "Asia/Tokyo"),
                ("client_encoding", "LATIN1"),
                ("extra_float_digits", "1"),
            )
        ),
        Send(query("SELECT '2001-02-03'::date, '2001-02-03 00:00:00+00'::timestamptz")),
        Until("Z"),
        Send(query("SHOW client_encoding; SHOW application_name")),
        Until("Z"),
        logged_in=False,
    ),
    refused("T7 unknown start-up parameter", startup(POSTGRES | {"no_such_setting": "1"})),
    script(
        "T7 options of one client do not reach the next",
        Login(who="b", parameters=(("options", "-c work_mem=9MB"),)),
        Send(query("SHOW work_mem"), who="b"),
        Until("Z", who="b"),
        Login(),
        Send(query("SHOW work_mem")),
        Until("Z"),
        logged_in=False,
    ),
)

SCRIPTS = LENGTHS + NAMES + VERSIONS + OPTIONS
