"""Registry: every rewrite of attention, found by walking this folder.

A rewrite is a file with a ``REWRITE`` named like the file: adding one touches no other file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

import tokopt.passes.rewrites
from tokopt.ir.errors import InputError, InternalError
from tokopt.passes.rewrites.reuse import Reuse
from tokopt.passes.rewrites.rewrite import Rewrite


def find_rewrite(name: str) -> Rewrite | Reuse:
    """Return a rewrite by name; raises ``InputError`` listing those there are."""
    if name not in REWRITES:
        raise InputError(
            f"there is no rewrite of attention {name!r}",
            expected="one of " + ", ".join(REWRITES),
            hint="methods that drop rows are written as a [[stage]]",
        )
    return REWRITES[name]


def _collected() -> Mapping[str, Rewrite | Reuse]:
    found: dict[str, Rewrite | Reuse] = {}
    path, prefix = tokopt.passes.rewrites.__path__, "tokopt.passes.rewrites."
    for entry in pkgutil.iter_modules(path, prefix):
        if entry.name == __name__:
            continue
        rewrite = getattr(importlib.import_module(entry.name), "REWRITE", None)
        if isinstance(rewrite, (Rewrite, Reuse)):
            if prefix + rewrite.name != entry.name:
                raise InternalError(
                    f"the rewrite {rewrite.name!r} is not called like its file", where=entry.name
                )
            found[rewrite.name] = rewrite
    return MappingProxyType(found)


REWRITES: Mapping[str, Rewrite | Reuse] = _collected()
"""All rewrites by name."""
