"""Registry: every method of the library, found by walking this folder.

A method is a file with a ``METHOD`` named like the file: adding one touches no other file.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import MappingProxyType, ModuleType

import tokopt.passes.methods
from tokopt.ir.errors import InputError, InternalError
from tokopt.passes.methods.method import Method


def collect(modules: Iterable[ModuleType]) -> Mapping[str, Method]:
    """Return the methods of modules by name, sorted; modules without ``METHOD`` are passed over.

    Raises ``InternalError`` where a file and its method differ in name, or two share one.
    """
    found: dict[str, Method] = {}
    for module in modules:
        method = getattr(module, "METHOD", None)
        if not isinstance(method, Method):
            continue
        if method.name in found:
            raise InternalError(f"two methods are called {method.name!r}", where=module.__name__)
        if method.name != module.__name__.rpartition(".")[2]:
            raise InternalError(
                f"the method {method.name!r} is not called like its file", where=module.__name__
            )
        found[method.name] = method
    return MappingProxyType(dict(sorted(found.items())))


def find_method(name: str) -> Method:
    """Return a method by name; raises ``InputError`` listing those there are."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, 1)
    raise InputError(
        f"there is no method {name!r}",
        expected="one of " + ", ".join(METHODS),
        hint=f"did you mean {near[0]}?" if near else "tokopt methods describes them",
    )


def _modules() -> Iterable[ModuleType]:
    for entry in pkgutil.iter_modules(tokopt.passes.methods.__path__, "tokopt.passes.methods."):
        if entry.name != __name__:
            yield importlib.import_module(entry.name)


METHODS: Mapping[str, Method] = collect(_modules())
"""All methods by name."""
