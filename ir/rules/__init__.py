"""The table of dim rules: one rule per operator, found by walking this package.

``RULES`` maps ``namespace::name`` to a function that states on a ``Call`` what becomes of each dim.
Every overload of a name shares its rule.  Adding an operator is one entry in one file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from tokopt.ir.call import Call

Rule = Callable[[Call], None]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operator names; ``aten::`` is added where no namespace is given."""

    def register(function: Rule) -> Rule:
        for name in names:
            key = name if "::" in name else f"aten::{name}"
            if key in RULES:
                raise ValueError(f"two dim rules for {key}")
            RULES[key] = function
        return function

    return register


def load_rules() -> dict[str, Rule]:
    """Import every rule file and return the table."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    return RULES
