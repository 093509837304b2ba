"""SASLprep (RFC 4013) of passwords, with PostgreSQL's rule for what it cannot prepare.

Not here: any hashing. Next on the path: ``config/compile.py``.
"""

from __future__ import annotations

import stringprep
import unicodedata

_PROHIBITED = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def saslprep(password: str) -> bytes:
    """Prepare a password for SCRAM.

    Returns the prepared form in UTF-8, or the password's own bytes where preparation fails (a
    prohibited or unassigned character, broken bidirectional text): PostgreSQL's server and libpq do
    the same, so that every password can log in. Never raises for any ``str`` that came from UTF-8
    or the environment.
    """
    raw = password.encode("utf-8", "surrogateescape")
    if password.isascii():
        return raw  # ASCII prepares to itself, and control characters make it fail: the same bytes
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char
        for char in password
        if not stringprep.in_table_b1(char)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if not prepared or not _is_allowed(prepared) or not _is_bidi_sound(prepared):
        return raw
    return prepared.encode("utf-8")


def _is_allowed(text: str) -> bool:
    return not any(
        stringprep.in_table_a1(char) or any(table(char) for table in _PROHIBITED) for char in text
    )


def _is_bidi_sound(text: str) -> bool:
    """Apply RFC 3454 section 6: right-to-left text starts and ends so, with nothing else in it."""
    if not any(stringprep.in_table_d1(char) for char in text):
        return True
    if any(stringprep.in_table_d2(char) for char in text):
        return False
    return stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
