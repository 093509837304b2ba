"""Finds the line on which each key of a TOML file stands.

``tomllib`` gives values without positions, so this walks the text once more. It is not a parser: it
trusts that ``tomllib`` has accepted the file and only tracks keys, brackets and strings. Next on
the path: ``sources.py``.
"""

from __future__ import annotations

import re

from pyproxy.config.problems import Path

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = " \t"


def key_lines(text: str) -> dict[Path, int]:
    """Map each key's path, and each array element's, to its line (from 1).

    ``text`` must be TOML that ``tomllib`` accepts; of anything else only the part before the flaw
    may be found.
    """
    return _Walker(text).walk()


class _Walker:
    """One pass over the text; ``at`` is the offset of the next character."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.arrays: dict[Path, int] = {}

    def walk(self) -> dict[Path, int]:
        table: Path = ()
        while self.skip_blank(newlines=True):
            if self.text.startswith("[[", self.at):
                self.at += 2
                table = self.array_header(self.dotted_key())
            elif self.text[self.at] == "[":
                self.at += 1
                table = self.resolve(self.dotted_key())
                self.note(table)
            else:
                self.key_value(table)
                continue
            self.skip_line()
        return self.lines

    def array_header(self, keys: list[str]) -> Path:
        path = (*self.resolve(keys[:-1]), keys[-1])
        self.note(path)
        index = self.arrays.get(path, -1) + 1
        self.arrays[path] = index
        self.note((*path, index))
        return (*path, index)

    def resolve(self, keys: list[str]) -> Path:
        """Turn a header's keys into a path: an array of tables stands for its latest element."""
        path: Path = ()
        for key in keys:
            path = (*path, key)
            if path in self.arrays:
                path = (*path, self.arrays[path])
        return path

    def key_value(self, table: Path) -> None:
        start = self.at
        path = table
        for key in self.dotted_key():
            path = (*path, key)
            self.note(path, start)
        self.skip_blank(newlines=False)
        self.at += 1  # the equals sign
        self.value(path)

    def value(self, path: Path) -> None:
        self.skip_blank(newlines=False)
        head = self.text[self.at : self.at + 1]
        if head in ('"', "'"):
            self.string()
        elif head == "[":
            self.array(path)
        elif head == "{":
            self.inline_table(path)
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\n":
                self.at += 1

    def array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self.skip_blank(newlines=True) and self.text[self.at] != "]":
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self.note((*path, index))
            self.value((*path, index))
            index += 1
        self.at += 1

    def inline_table(self, path: Path) -> None:
        self.at += 1
        while self.skip_blank(newlines=True) and self.text[self.at] != "}":
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self.key_value(path)
        self.at += 1

    def dotted_key(self) -> list[str]:
        keys: list[str] = []
        while True:
            self.skip_blank(newlines=False)
            bare = _BARE.match(self.text, self.at)
            if bare:
                keys.append(bare[0])
                self.at = bare.end()
            else:
                keys.append(self.string())
            self.skip_blank(newlines=False)
            if self.text[self.at : self.at + 1] != ".":
                return keys
            self.at += 1

    def string(self) -> str:
        """Step over a string of any of the four kinds; escapes are kept as they stand."""
        quote = self.text[self.at : self.at + 1]
        triple = quote * 3
        end = triple if self.text.startswith(triple, self.at) else quote
        begin = self.at = self.at + max(len(end), 1)
        while self.at < len(self.text) and not self.text.startswith(end, self.at):
            self.at += 2 if quote == '"' and self.text[self.at] == "\\" else 1
        inside = self.text[begin : self.at]
        self.at += len(end)
        while len(end) == 3 and self.text.startswith(quote, self.at):
            self.at += 1  # a multi-line string may end in up to two quotes of its own
        return inside

    def skip_blank(self, *, newlines: bool) -> bool:
        """Step over blanks and comments; return whether anything is left."""
        while self.at < len(self.text):
            here = self.text[self.at]
            if here == "#":
                self.skip_line()
            elif here in _BLANK or (newlines and here == "\n"):
                self.at += 1
            else:
                return True
        return False

    def skip_line(self) -> None:
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end

    def note(self, path: Path, at: int | None = None) -> None:
        line = self.text.count("\n", 0, self.at if at is None else at) + 1
        self.lines.setdefault(path, line)
