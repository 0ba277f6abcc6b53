"""Sizes as text: a parser of ``expr_str`` that never hands the file's text to sympy or Python.

torch writes a symbolic size with sympy's ``srepr``, that is as nested calls::

    FloorDiv(Add(Symbol('s27', positive=True, integer=True), Integer(3)), Integer(2))

and reads it back with ``sympify``, which is ``eval``.  Here the text is cut into tokens and parsed
by recursive descent; ``expression_calls`` decides which calls are made::

    term     := NAME "(" [ argument { "," argument } ] ")"  |  NAME  |  INTEGER  |  TEXT
    argument := NAME "=" term  |  term

Tested by ``parse_expression(srepr(e)) == e`` for random ``e``, and by random text.  Grammar: what
torch 2.11 to 2.13 prints (``torch._export.serde.serialize._print_sympy``).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import sympy

from tokopt.ir.errors import InputError
from tokopt.ir.expression_calls import KNOWN, build

_LONGEST, _DEEPEST = 1 << 16, 64
_TOKEN = re.compile(r"\s*([A-Za-z_]\w*|-?\d{1,40}|'[\w.+-]{0,64}'|[(),=]|\Z)", re.ASCII)
_NAMES = {"true": sympy.true, "false": sympy.false, "True": True, "False": False}


@lru_cache(maxsize=4096)
def parse_expression(text: str) -> sympy.Basic:
    """Parse one symbolic size, or a condition on sizes, as torch's exporter printed it.

    Raises ``InputError`` for anything that is not in the grammar or that sympy refuses.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise InputError(f"a symbolic size is no text of up to {_LONGEST} characters")
    try:
        expression = _Parser(text).whole()
    except InputError as error:
        error.where = f"symbolic size {text!r:.100}"
        raise
    except Exception as error:  # whatever the classes of sympy and torch raise at odd arguments
        raise InputError(f"no symbolic size: {error}", where=f"{text!r:.100}") from error
    if not isinstance(expression, sympy.Basic):
        raise InputError("no symbolic size", where=f"{text!r:.100}", expected="Integer(3)")
    return expression


class _Parser:
    """One pass over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        at, token = 0, " "
        while token:
            found = _TOKEN.match(text, at)
            if found is None:
                raise InputError(f"a symbolic size holds {text[at : at + 20]!r}")
            at, token = found.end(), found[1]
            self._tokens.append(token)
        self._tokens.reverse()  # the next token is the last

    def whole(self) -> Any:
        term = self._term(0)
        self._expect("")
        return term

    def _take(self) -> str:
        return self._tokens.pop() if self._tokens else ""

    def _expect(self, expected: str) -> None:
        if (token := self._take()) != expected:
            raise InputError(f"a symbolic size holds {token!r:.40} instead of {expected!r}")

    def _sees(self, token: str) -> bool:
        return self._tokens[-1:] == [token]

    def _term(self, depth: int) -> Any:
        token = self._take()
        if token.startswith("'"):
            return token[1:-1]
        if token.lstrip("-").isdigit():
            return int(token)
        if token in _NAMES:
            return _NAMES[token]
        if token not in KNOWN or depth > _DEEPEST:
            raise InputError(f"a symbolic size holds {token!r:.40} at depth {depth}")
        self._expect("(")
        positional: list[Any] = []
        named: dict[str, Any] = {}
        while not self._sees(")"):
            if self._tokens[-2:-1] == ["="]:
                name = self._take()
                self._expect("=")
                named[name] = self._term(depth + 1)
            else:
                positional.append(self._term(depth + 1))
            if not self._sees(")"):
                self._expect(",")
        self._expect(")")
        return build(token, positional, named)
