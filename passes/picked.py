"""Picked: rows that a program itself reads by number, at numbers made of its inputs.

CLIP's text encoder reads the row at which the text ends: ``index(rows, [items, argmax(ids)])``.
Such rows may not be dropped where a method's rows are words.  Numbers are found in the graph; a
call that reads rows by numbers in another way is refused, for which rows it wants is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tokopt.ir.axis import locate
from tokopt.ir.dims import arguments_of, describe, operator_name
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts
from tokopt.ir.plan import Plan
from tokopt.ir.sites import Site
from tokopt.passes.methods.method import Method

BY_NUMBER = {"aten::gather", "aten::index_select", "aten::take_along_dim"}


def picked_of_plan(
    facts: Facts, plan: Plan, methods: Callable[[str], Method]
) -> dict[str, tuple[fx.Node, ...]]:
    """Return the numbers of the rows read behind each site, int64 ``[B]`` each.

    For the stages whose method asks for them; to be asked before anything is rewritten.
    """
    return {
        stage.site: picked_rows(facts, facts.find_site(stage.site)[1])
        for stage in plan.stages
        if "picked" in methods(stage.method).needs
    }


def picked_rows(facts: Facts, site: Site) -> tuple[fx.Node, ...]:
    """Return the numbers of the rows read behind one site."""
    found: list[fx.Node] = []
    for node in facts.exported.graph.nodes:
        if node.op != "call_function" or not facts.dependence.reaches(site.value, node):
            continue
        name, rows = operator_name(node), node.all_input_nodes[0] if node.all_input_nodes else None
        axes = facts.dims.axes.get(rows, []) if rows is not None else []
        at = next((d for d, axis in enumerate(axes) if locate(axis, site.tokens)), None)
        if at is None or name not in BY_NUMBER | {"aten::index"}:
            continue
        given = arguments_of(node)
        numbers = given["indices"] if name == "aten::index" else ()
        own: Any = numbers[at] if at < len(numbers) else None
        if name == "aten::index" and own is None:
            continue
        known = isinstance(own, fx.Node) and not facts.dependence.reaches(site.value, own)
        if not known or own.meta["val"].dim() != 1:
            raise UnsupportedError(
                "rows of the text are read by numbers, and which of them is not known",
                where=describe(node),
                expected="one row of each item: rows[items, numbers]",
            )
        found.append(own)
    return tuple(found)


def picked_mask(numbers: Sequence[Tensor], like: Tensor) -> Tensor | None:
    """Return which rows are read by number, bool like ``[B, N]``; None where none are."""
    if not numbers:
        return None
    rows = torch.arange(like.shape[1], device=like.device)
    each = [rows.unsqueeze(0) == own.unsqueeze(-1) for own in numbers]
    return torch.stack(each).any(0).expand(like.shape)
