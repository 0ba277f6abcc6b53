"""Registry: every pass there is, found by walking this folder; adding a pass touches one file."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType, ModuleType

from tokopt.ir.errors import InternalError
from tokopt.passes.base import Pass


@cache
def registered_passes() -> Mapping[str, type[Pass]]:
    """Return the passes of ``tokopt.passes`` by name, in alphabetical order."""
    package = importlib.import_module("tokopt.passes")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return collect(importlib.import_module(f"tokopt.passes.{name}") for name in names)


def collect(modules: Iterable[ModuleType]) -> Mapping[str, type[Pass]]:
    """Return the passes defined in modules; a second pass of one name is refused."""
    found: dict[str, type[Pass]] = {}
    for module in modules:
        for value in vars(module).values():
            if not (inspect.isclass(value) and issubclass(value, Pass)):
                continue
            if value.__module__ != module.__name__ or inspect.isabstract(value):
                continue
            _check_is_frozen(value)
            if value.name in found:
                raise InternalError(
                    f"two passes are called {value.name!r}",
                    where=f"{found[value.name].__module__} and {module.__name__}",
                )
            found[value.name] = value
    return MappingProxyType(dict(sorted(found.items())))


def _check_is_frozen(value: type[Pass]) -> None:
    parameters = value.__dict__.get("__dataclass_params__")
    if not dataclasses.is_dataclass(value) or parameters is None or not parameters.frozen:
        raise InternalError(
            f"pass {value.__name__} is no frozen dataclass",
            where=value.__module__,
            hint="put @dataclass(frozen=True) above the class",
        )
