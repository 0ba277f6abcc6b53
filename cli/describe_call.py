"""Describe one call: its printed name, its operator, where it was written; and lengths."""

from __future__ import annotations

from typing import Any

from torch import fx

from tokopt.ir.dims import operator_name
from tokopt.ir.lengths import Length
from tokopt.ir.names import Names


def describe_call(node: fx.Node, names: Names, places: bool) -> dict[str, Any]:
    """Return a call's printed name and operator, and with ``places`` its module and line."""
    known: dict[str, Any] = {"node": names.node(node), "operator": operator_name(node)}
    if places:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        frames = [x.strip() for x in (node.meta.get("stack_trace") or "").splitlines()]
        lines = [x for x in frames if x.startswith("File ")]
        known["module"] = stack[-1][0] if stack else None
        known["line"] = _line(lines[-1]) if lines else None
    return known


def _line(frame: str) -> str:
    """Return ``path:12`` of ``File "path", line 12, in forward``."""
    path, _, rest = frame.removeprefix('File "').partition('", line ')
    return f"{path}:{rest.partition(',')[0]}"


def describe_length(length: Length, names: Names) -> int | str:
    """Return an integer, or a text such as ``s0 + 36``."""
    return length if isinstance(length, int) else names.length(length)
