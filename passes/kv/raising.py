"""Raising: attention over a stored cache becomes one call of ``tokopt::cached_attention``.

What a target without that operator runs is left as it is: rows are read back in full, and attention
reads those.  Raised is fused attention of a step of few new rows whose keys and values are both
stored in static codes; where query heads share the cache's, the cache's rows may be written
out for each of them in front of the attention, neighbours alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import statically_known_true as known

from tokopt.ir.attention import FUSED
from tokopt.ir.dialect import OPS
from tokopt.ir.dialect.cached_attention import CODES
from tokopt.ir.dims import arguments_of, operator_name
from tokopt.ir.trace import call, splice

aten = torch.ops.aten
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MOST_ROWS = 16
"""New rows of a step.  More are a prompt, whose own rows are most of what attention reads."""

SAME = frozenset(
    {aten.alias.default, aten.clone.default, aten.contiguous.default, aten.slice.Tensor}
)
SHAPED = frozenset(
    {aten.unsqueeze.default, aten.expand.default, aten.view.default, aten.reshape.default}
    | {aten._unsafe_view.default, aten.flatten.using_ints}
)


@dataclass(frozen=True)
class StoredRows:
    """A grown cache in a graph: ``codes`` of all rows, their constants, the ``new`` rows exact."""

    codes: fx.Node
    scale: fx.Node
    centre: fx.Node
    new: fx.Node


def raise_attention(
    graph: fx.Graph, stored: Mapping[fx.Node, StoredRows], mode: FakeTensorMode
) -> int:
    """Rewrite attention over ``stored`` caches, by the nodes of all rows; return how many."""
    raised = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or operator_name(node) != FUSED:
            continue
        given = arguments_of(node)
        query, mask = given["query"], given.get("attn_mask")
        keys, values = (_stored(given[side], query, stored) for side in ("key", "value"))
        if keys is None or values is None or given.get("is_causal") or not _fits(query, mask):
            continue
        width, scale = int(query.meta["val"].shape[-1]), given.get("scale")
        with graph.inserting_before(node):
            if mask is not None and mask.meta["val"].dtype == torch.bool:
                mask = splice(graph, _bias, [mask], mode)
            made = call(
                graph,
                OPS["cached_attention"].overload,
                *(query, keys.new, values.new, keys.codes, values.codes),
                *(keys.scale, keys.centre, values.scale, values.centre),
                *(mask, 1 / math.sqrt(width) if scale is None else float(scale)),
                mode=mode,
            )
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        raised += 1
    return raised


def _bias(mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, 0.0, float("-inf"))


def _fits(query: fx.Node, mask: fx.Node | None) -> bool:
    value = query.meta["val"]
    fits = value.ndim == 4 and value.dtype in FLOATS and known(value.shape[2] <= MOST_ROWS)
    if mask is None:
        return fits
    bias = mask.meta["val"]
    return fits and bias.ndim == 4 and bias.dtype in (torch.bool, *FLOATS)


def _stored(
    rows: fx.Node, query: fx.Node, stored: Mapping[fx.Node, StoredRows]
) -> StoredRows | None:
    """Return the cache that attention reads as it is, or with its heads repeated in groups."""
    chain, node = [], rows
    while node not in stored:
        if node.op != "call_function" or node.target not in SAME | SHAPED:
            return None
        chain.append(node)
        node = node.all_input_nodes[0]
    found, value, own = stored[node], rows.meta["val"], node.meta["val"]
    few = known(found.new.meta["val"].shape[2] <= MOST_ROWS)
    if found.codes.meta["val"].dtype not in CODES or not few:
        return None
    whole = [n for n in chain if n.target in SAME]
    if any(not _equal(n.meta["val"], n.all_input_nodes[0].meta["val"]) for n in whole):
        return None
    if not known(value.shape[2] == own.shape[2]) or query.meta["val"].shape[3] != own.shape[3]:
        return None
    grouped = [n for n in chain if n.target in SHAPED]
    if not grouped:
        return found
    first = grouped[-1]
    in_front = first.target is aten.unsqueeze.default and first.args[1] in (2, -3)
    return found if in_front and _grouped(grouped, own, value) else None


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.ndim == other.ndim and all(
        known(a == b) for a, b in zip(one.shape, other.shape, strict=True)
    )


def _grouped(chain: list[fx.Node], own: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether what was unsqueezed is expanded there and then folded into the heads."""
    kinds = [n.target for n in reversed(chain)]
    if kinds[:2] != [aten.unsqueeze.default, aten.expand.default] or len(kinds) != 3:
        return False
    times = chain[-2].meta["val"].shape
    return bool(
        value.ndim == 4
        and known(times[1] == own.shape[1])
        and known(value.shape[1] == times[1] * times[2])
        and known(value.shape[3] == own.shape[3])
    )
