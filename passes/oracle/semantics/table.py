"""The table of rules: which operator treats dead entries how.

A rule is called only where an operand has dead entries; it returns what the operator gives on the
tensors without those entries, seen at full length.  An operator without a rule is an error.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from tokopt.ir.dims import operator_name
from tokopt.passes.oracle.operation import Operation

Rule = Callable[[Operation], Any]
_RULES: dict[str, Rule] = {}
_FILES = (
    "pointwise",
    "movement",
    "joining",
    "indexing",
    "reduction",
    "whole",
    "contraction",
    "attention",
)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for aten operators by name."""

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in _RULES, f"{name} has two rules"
            _RULES[name] = function
        return function

    return register


def find_rule(node: fx.Node) -> Rule | None:
    """Return the rule of a node's operator, None where there is none.

    Operators that torch itself tags as pointwise and that have no rule by name share one.
    """
    for file in _FILES:
        importlib.import_module(f"tokopt.passes.oracle.semantics.{file}")
    space, _, name = operator_name(node).partition("::")
    if space != "aten":
        return None
    found = _RULES.get(name)
    if found is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return _RULES["add"]
    return found
