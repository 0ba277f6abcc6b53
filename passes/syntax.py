"""Syntax: the text of a pipeline as calls with options, positions kept for messages.

::

    pipeline := [ call { "," call } ]
    call     := name [ "{" { entry } "}" ]
    entry    := name "=" value
    value    := word | "[" { value } "]" | "{" { entry } "}"
    word     := letters, digits and _ . : + * / -   |   a JSON string

White space separates and is otherwise free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from tokopt.ir.errors import InputError

BARE = re.compile(r"[A-Za-z0-9_.:+*/-]+")
_NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Word:
    """One word; ``at`` is where it stands in the text."""

    text: str
    quoted: bool
    at: int


@dataclass(frozen=True)
class Items:
    """A list of values."""

    values: tuple[Value, ...]
    at: int


@dataclass(frozen=True)
class Table:
    """Keys with their values and where the keys stand."""

    entries: Mapping[str, tuple[Value, int]]
    at: int


Value = Word | Items | Table


@dataclass(frozen=True)
class Call:
    """A name with options."""

    name: str
    options: Table
    at: int


def read_calls(text: str) -> list[Call]:
    """Read a pipeline's text.  Raises ``InputError`` with the column where it does not fit."""
    return _Reader(text).calls()


def fail(text: str, at: int, what: str, expected: str = "", hint: str = "") -> NoReturn:
    """Raise ``InputError`` pointing at a column of a pipeline's text."""
    first = max(0, at - 50)
    excerpt = re.sub(r"\s", " ", text[first : at + 50])
    where = f"pipeline, column {at + 1}\n    {excerpt}\n    {' ' * (at - first)}^"
    raise InputError(what, where=where, expected=expected or None, hint=hint or None)


class _Reader:
    """One pass over one text."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def calls(self) -> list[Call]:
        calls: list[Call] = []
        while not self._ended():
            if calls and not self._take(","):
                fail(self.text, self.at, f"{self._here()} after {calls[-1].name!r}", "a comma")
            name, at = self._name("a name")
            calls.append(Call(name, self._table() if self._sees("{") else Table({}, at), at))
        return calls

    def _table(self) -> Table:
        start = self._skip()
        self._take("{")
        entries: dict[str, tuple[Value, int]] = {}
        while not self._take("}"):
            key, at = self._name("key=value or '}'")
            if key in entries:
                fail(self.text, at, f"{key!r} is given twice")
            if not self._take("="):
                fail(self.text, self.at, f"{self._here()} after {key!r}", "'='")
            entries[key] = self._value(), at
        return Table(entries, start)

    def _value(self) -> Value:
        start = self._skip()
        if self._sees("{"):
            return self._table()
        if self._take("["):
            values = []
            while not self._take("]"):
                values.append(self._value())
            return Items(tuple(values), start)
        if self._sees('"'):
            try:
                text, self.at = json.JSONDecoder().raw_decode(self.text, start)
            except json.JSONDecodeError as error:
                fail(self.text, error.pos, "a quoted text does not end, or has a bad escape")
            return Word(text, True, start)
        found = BARE.match(self.text, start)
        if found is None:
            fail(self.text, start, f"{self._here()} instead of a value", "a word, [a b] or {k=v}")
        self.at = found.end()
        return Word(found[0], False, start)

    def _name(self, expected: str) -> tuple[str, int]:
        start = self._skip()
        found = _NAME.match(self.text, start)
        if found is None:
            fail(self.text, start, f"{self._here()} where a name should be", expected)
        self.at = found.end()
        return found[0], start

    def _skip(self) -> int:
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.at

    def _sees(self, token: str) -> bool:
        return self.text.startswith(token, self._skip())

    def _take(self, token: str) -> bool:
        seen = self._sees(token)
        self.at += len(token) * seen
        return seen

    def _ended(self) -> bool:
        return self._skip() == len(self.text)

    def _here(self) -> str:
        return "the end of the text" if self._ended() else repr(self.text[self.at])
