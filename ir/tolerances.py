"""Tolerances: the differences that gates allow, all of them, in one table.

Every number is relative to the largest value of an output, taken as at least 1: rounding errors of
a matrix product scale with the largest values, not with each element.  Imports nothing: the command
line shows them before torch is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram

TOLERANCES = {"float64": 1e-8, "float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
"""Two ways to compute one program in a dtype (a target and torch, an export and the model)."""

IDENTITY = 1e-6
"""The same operators on the same rows, in fp32 whatever the program's dtype."""

ORACLE = TOLERANCES["float32"]
"""A rewritten program and the masked original, in fp32 whatever the program's dtype."""

TIE = 1e-5
"""Scores nearer than this (relative to the largest) may be ranked either way, in fp32."""


def tolerance_of(dtype: Any) -> float:
    """Return the row of the table for a dtype; 0.0 for one whose values must be equal."""
    return TOLERANCES.get(str(dtype).removeprefix("torch."), 0.0)


def coarsest(exported: ExportedProgram) -> float:
    """Return the largest tolerance of the dtypes that a program computes in.

    The dtype of the outputs says too little: many half programs end with a cast to fp32.
    """
    dtypes = {str(getattr(node.meta.get("val"), "dtype", "")) for node in exported.graph.nodes}
    return max((tolerance_of(dtype) for dtype in dtypes), default=0.0)
