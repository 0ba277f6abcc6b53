"""Option: a pass's fields as words, read and printed by the field's type.

A bare word is read as what the type says; where the type leaves it open (``int | float | str``) as
the first of none, true or false, integer, number, text that fits.  A quoted word is always text,
so the text ``14`` is printed ``"14"``.  Lists are ``[a b]``, tables ``{key=value}``.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from tokopt.ir.errors import InputError, InternalError
from tokopt.passes.syntax import BARE, Call, Items, Table, Value, Word

_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf|nan", re.ASCII)
_FIRST: tuple[Any, ...] = (type(None), bool, int, float)
_WORDS = {
    type(None): "none",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
}


def read_value(value: Value, kind: Any) -> Any:
    """Return a value as ``kind``.  Raises ``ValueError`` saying what was expected."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _read_union(value, inner)
    if origin in (tuple, Sequence) and isinstance(value, Items):
        return tuple(read_value(item, inner[0]) for item in value.values)
    if origin is Mapping and isinstance(value, Table):
        return {key: read_value(item, inner[1]) for key, (item, _) in value.entries.items()}
    if isinstance(value, Word):
        if origin is Literal and value.text in inner:
            return value.text
        if kind is str:
            return value.text
        if not value.quoted:
            if kind is bool and value.text in ("true", "false"):
                return value.text == "true"
            if kind is type(None) and value.text == "none":
                return None
            if kind is int and _INTEGER.fullmatch(value.text):
                return int(value.text)
            if kind is float and _NUMBER.fullmatch(value.text):
                return float(value.text)
    raise ValueError(describe_kind(kind))


def _read_union(value: Value, kinds: Sequence[Any]) -> Any:
    rest = [kind for kind in kinds if kind not in (*_FIRST, str)]
    for kind in [k for k in (*_FIRST, *rest, str) if k in kinds]:
        try:
            return read_value(value, kind)
        except ValueError:
            continue
    raise ValueError(" or ".join(map(describe_kind, kinds)))


def read_settings(call: Call) -> dict[str, int | float | str]:
    """Return the options of ``name{key=value}``.  ``InputError`` for a list or a table."""
    found: dict[str, int | float | str] = {}
    for key, (value, _) in call.options.entries.items():
        try:
            found[key] = read_value(value, int | float | str)
        except ValueError as error:
            raise InputError(
                f"{call.name}: {key} is a list or a table", expected=str(error)
            ) from error
    return found


def print_value(value: Any) -> str:
    """Return the text that ``read_value`` reads as ``value``."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        misread = value in ("none", "true", "false") or _NUMBER.fullmatch(value)
        return value if BARE.fullmatch(value) and not misread else json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + " ".join(f"{k}={print_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + " ".join(map(print_value, value)) + "]"
    raise InternalError(f"an option of type {type(value).__name__} has no text: {value!r}")


def describe_kind(kind: Any) -> str:
    """Return a type in words for messages: ``an integer``, ``one of full, kept``."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe_kind, inner))
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (tuple, Sequence):
        return f"a list [a b], each {describe_kind(inner[0])}"
    if origin is Mapping:
        return f"a table {{key=value}}, each value {describe_kind(inner[1])}"
    return _WORDS.get(kind, str(kind))
