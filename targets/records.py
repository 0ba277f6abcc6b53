"""Frozen dataclasses to JSON and back: strict, small, and only for types that are plain data.

Fields may be ``str``, ``int``, ``float``, ``bool``, ``None``, dataclasses, ``tuple[X, ...]``,
``tuple[X, Y]``, ``Mapping[str, X]`` and unions of these.  Numbers that JSON lacks (not a number,
infinity) are written as the strings ``"nan"``, ``"inf"`` and ``"-inf"``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tokopt.ir.errors import InputError

T = TypeVar("T")
SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_json(record: Any) -> str:
    """Return ``record`` as indented JSON with a final newline; equal records give equal text."""
    return json.dumps(_plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(kind: type[T], text: str, where: str) -> T:
    """Parse ``text`` as a ``kind``.  ``InputError`` names ``where`` and the field that is wrong.

    Unknown fields are errors too: a file that says more than is read is not understood.
    """
    data = _parse(text, where)
    try:
        result: T = _read(kind, data, kind.__name__)
    except _Misfit as error:
        raise InputError(str(error), where=where, hint="the file may be damaged") from error
    return result


def field_of(text: str, name: str, where: str) -> Any:
    """Return one top-level field of a JSON object, or None; ``InputError`` for other JSON."""
    data = _parse(text, where)
    return data.get(name) if isinstance(data, dict) else None


class _Misfit(Exception):
    """A value that is not what its field declares."""


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"not valid JSON: {error}", where=where, hint="the file may be damaged"
        ) from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else str(value)
    return value


def _read(kind: Any, data: Any, path: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _read_union(args, data, path)
    if dataclasses.is_dataclass(kind):
        return _read_record(kind, data, path)
    if origin is tuple and isinstance(data, list):
        kinds = [args[0]] * len(data) if args[1:] == (...,) else list(args)
        if len(kinds) == len(data):
            pairs = enumerate(zip(kinds, data, strict=True))
            return tuple(_read(k, item, f"{path}[{i}]") for i, (k, item) in pairs)
    elif origin is Mapping and isinstance(data, dict):
        return {key: _read(args[1], item, f"{path}.{key}") for key, item in data.items()}
    elif kind is float and (type(data) in (int, float) or data in SPECIAL):
        return SPECIAL[data] if isinstance(data, str) else float(data)
    elif kind in (str, int, bool, types.NoneType) and type(data) is kind:
        return data
    raise _Misfit(f"{path} is {json.dumps(data)[:60]}, not a {getattr(kind, '__name__', kind)}")


def _read_union(kinds: tuple[Any, ...], data: Any, path: str) -> Any:
    for kind in kinds:
        try:
            return _read(kind, data, path)
        except _Misfit as error:
            last = error
    raise last


def _read_record(kind: Any, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise _Misfit(f"{path} is not an object")
    hints, names = get_type_hints(kind), {f.name for f in dataclasses.fields(kind)}
    if names != set(data):
        missing, extra = sorted(names - set(data)), sorted(set(data) - names)
        raise _Misfit(f"{path} lacks {missing}" if missing else f"{path} has unknown {extra}")
    return kind(**{name: _read(hints[name], data[name], f"{path}.{name}") for name in data})
