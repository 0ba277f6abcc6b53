"""Registry: every format of a cache, found by walking this folder.

A format is a file with a ``FORMAT`` named like the file: adding one touches no other file.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from types import MappingProxyType, ModuleType

import tokopt.passes.kv
from tokopt.ir.errors import InputError, InternalError
from tokopt.passes.kv.format import Format
from tokopt.passes.option import read_settings
from tokopt.passes.syntax import read_calls


def collect(modules: Iterable[ModuleType]) -> Mapping[str, Format]:
    """Return the formats of modules by name, sorted; modules without ``FORMAT`` are passed over.

    Raises ``InternalError`` where a file and its format differ in name.
    """
    found: dict[str, Format] = {}
    for module in modules:
        format = getattr(module, "FORMAT", None)
        if not isinstance(format, Format):
            continue
        if format.name != module.__name__.rpartition(".")[2]:
            raise InternalError(
                f"the format {format.name!r} is not called like its file", where=module.__name__
            )
        found[format.name] = format
    return MappingProxyType(dict(sorted(found.items())))


def find_format(text: str) -> Format:
    """Return a format by name, with settings where the text has any: ``kivi{bits=4 window=32}``.

    Raises ``InputError`` listing the formats or settings there are, and for one that does not fit.
    """
    calls = read_calls(text)
    if len(calls) != 1:
        raise InputError(f"a cache format {text!r}", expected="a name, or kivi{bits=4}")
    format, given = _named(calls[0].name), read_settings(calls[0])
    known = {field.name: field for field in fields(format)}
    for name, value in given.items():
        if name not in known or type(value) is not type(known[name].default):
            told = ", ".join(f"{one.name}={one.default}" for one in known.values())
            raise InputError(f"{format.name}: {name}={value}", expected=told or "no settings")
    return replace(format, **given) if given else format


def _named(name: str) -> Format:
    if name in FORMATS:
        return FORMATS[name]
    near = difflib.get_close_matches(name, FORMATS, 1)
    raise InputError(
        f"there is no cache format {name!r}",
        expected="one of " + ", ".join(FORMATS),
        hint=f"did you mean {near[0]}?" if near else None,
    )


def _modules() -> Iterable[ModuleType]:
    for entry in pkgutil.iter_modules(tokopt.passes.kv.__path__, "tokopt.passes.kv."):
        if entry.name != __name__:
            yield importlib.import_module(entry.name)


FORMATS: Mapping[str, Format] = collect(_modules())
"""All formats by name, with the published settings."""
