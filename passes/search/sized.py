"""Sized: a program for the sizes that all batches of a search have.

Operators on free sizes are slow to trace: a rewrite of a program whose sizes are numbers takes a
third of the time.  Plans name sites, so a plan of one program is a plan of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy
import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.errors import TokoptError
from tokopt.ir.facts import Facts, analyse
from tokopt.ir.specialise import specialise


def sized(facts: Facts, batches: Sequence[Mapping[str, Tensor]]) -> Facts:
    """Return the facts of the program with every free size put in on which all batches agree.

    The facts themselves where there is none, or where the other program has not the same sites.
    """
    exported = facts.exported
    try:
        while (found := next(iter(_shared(exported, batches)), None)) is not None:
            exported = specialise(exported, *found)
        fixed = facts if exported is facts.exported else analyse(exported)
    except (TokoptError, RuntimeError, ValueError, TypeError, IndexError):
        return facts  # a size that its guards do not allow
    return fixed if _sites(fixed) == _sites(facts) else facts


def _shared(
    exported: ExportedProgram, batches: Sequence[Mapping[str, Tensor]]
) -> list[tuple[sympy.Symbol, int]]:
    """Return the free sizes of inputs that are one number in all batches, with that number."""
    found: dict[sympy.Symbol, set[int]] = {}
    for place in exported.graph.find_nodes(op="placeholder"):
        for dim, size in enumerate(getattr(place.meta.get("val"), "shape", ())):
            if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
                sizes = {int(b[place.name].shape[dim]) for b in batches if place.name in b}
                found.setdefault(size.node.expr, set()).update(sizes)
    return [(symbol, *sizes) for symbol, sizes in found.items() if len(sizes) == 1]


def _sites(facts: Facts) -> list[tuple[str, str, bool, int, int | None]]:
    return [
        (stack.role, site.name, site.legal, site.group, stack.relay)
        for stack in facts.stacks
        for site in stack.sites
    ]
