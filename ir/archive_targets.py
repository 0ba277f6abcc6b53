"""Which call targets a program in a file may name: decided by text, before anything is resolved.

torch turns ``torch.a.b.c`` into an object by ``getattr``; a target such as ``torch.hub.os.mknod``
must not get that far.  Allowed are operators that are registered under the namespaces below
(looked up in the dispatcher's table, by name), arithmetic on symbolic sizes, and the higher-order
operators that only group other operators.
"""

from __future__ import annotations

import re

import torch

from tokopt.ir.errors import InputError

NAMESPACES = ("aten", "prims", "tokopt")
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", re.ASCII)
_FILE_ARGUMENTS = frozenset({"filename"})
"""aten::from_file maps and creates files: an operator with such an argument is refused."""

_ARITHMETIC = (
    "add and_ eq floordiv ge getitem gt le lshift lt mod mul ne neg or_ pos pow rshift sub truediv"
)
SCALARS = frozenset(
    [f"_operator.{name}" for name in _ARITHMETIC.split()]
    + [f"torch.sym_{name}" for name in ("float", "int", "ite", "max", "min", "not")]
    + ["torch._sym_sqrt", "math.trunc", "math.ceil", "math.floor"]
)
"""Arithmetic on symbolic sizes, as torch's serializer names it."""

GROUPS = frozenset(
    f"torch.ops.higher_order.{name}"
    for name in ("wrap_with_set_grad_enabled", "wrap_with_autocast", "cond", "scan")
)
"""Higher-order operators whose sub-graphs are in the file and are checked like the graph.

``scan`` runs its sub-graph once per row of a tensor: it ends, as ``while_loop`` need not.
"""


def check_target(target: object) -> str:
    """Return ``target`` if a program may call it; raises ``InputError`` naming it otherwise."""
    if isinstance(target, str) and (target in SCALARS or target in GROUPS or _is_operator(target)):
        return target
    raise InputError(
        f"the program calls {target!r:.200}",
        expected=f"operators of {', '.join(NAMESPACES)} known to torch {torch.__version__}",
        hint="export with standard operators; custom operators and Python functions are not loaded",
    )


def _is_operator(target: str) -> bool:
    found = _OPERATOR.fullmatch(target)
    if found is None or found[1] not in NAMESPACES:
        return False
    overload = "" if found[3] == "default" else found[3]
    schemas = torch._C._jit_get_schemas_for_operator(f"{found[1]}::{found[2]}")
    return any(
        schema.overload_name == overload
        and _FILE_ARGUMENTS.isdisjoint(argument.name for argument in schema.arguments)
        for schema in schemas
    )
