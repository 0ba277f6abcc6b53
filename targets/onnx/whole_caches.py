"""Whole caches: attention of one new row over a cache in full, as GroupQueryAttention.

It reads the cache and the new row apart, so that the row can be put behind the others in place
(``counted.py``): written out, a step copies every cache before it reads it.  Done only where all
caches of a size are read so: one that is read otherwise must have its rows in one piece, and then
the operator would be the slower one.

Measured with ONNX Runtime 1.31.1 on one thread, 32 heads of 128 and 8,192 rows in fp32: 29 ms in
place, 62 as written out, 84 where the operator copies (testsuite/benchmarks/kv_decode.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import statically_known_true as known

from tokopt.ir.attention import FUSED
from tokopt.ir.cache import Grown, find_grown
from tokopt.ir.cache_reads import cache_behind
from tokopt.ir.dims import arguments_of, operator_name
from tokopt.ir.rebuilt import draft_of, rebuilt
from tokopt.ir.trace import fake_mode_of, splice

ROWS = 2
FLOATS = (torch.float32, torch.float16)
EIGHT = 8
"""Head widths that the kernels take are multiples of it."""


@dataclass(frozen=True)
class _Layer:
    """``node`` attends with one row over two grown caches."""

    node: fx.Node
    query: fx.Node
    mask: fx.Node | None
    scale: float
    key: Grown
    value: Grown


def with_whole_caches(exported: ExportedProgram) -> ExportedProgram:
    """Return the program with attention over whole caches as one operator; without any, itself."""
    draft = draft_of(exported)
    graph, mode = draft.graph, fake_mode_of(draft.graph)
    grown = {one.node: one for one in find_grown(draft) if _comes_back(one)}
    layers = [one for node in graph.nodes if (one := _layer(node, grown)) is not None]
    taken = _apart([one.past for one in grown.values()], layers, draft)
    layers = [one for one in layers if one.key.past in taken and one.value.past in taken]
    for one in layers:
        with graph.inserting_before(one.node):
            sides = (one.key.new, one.value.new, one.key.past, one.value.past)
            given = [one.query, *sides, one.mask, one.scale]
            made, *caches = splice(graph, _attended, given, mode)
        one.node.replace_all_uses_with(made)
        graph.erase_node(one.node)
        for side, cache in zip((one.key, one.value), caches, strict=True):
            _erase_reads(graph, side.node)
            side.node.replace_all_uses_with(cache)
            graph.erase_node(side.node)
    return rebuilt(draft, graph) if layers else exported


def _comes_back(one: Grown) -> bool:
    """Whether a cache of free length is given with its new row behind it."""
    value = one.node.meta["val"]
    free = value.ndim == 4 and one.dim == ROWS and isinstance(value.shape[ROWS], SymInt)
    return free and any(user.op == "output" for user in one.node.users)


def _layer(node: fx.Node, grown: Mapping[fx.Node, Grown]) -> _Layer | None:
    """Return what a node attends to, where the operator does the same."""
    if node.op != "call_function" or operator_name(node) != FUSED:
        return None
    given: Any = arguments_of(node)
    key, value = (cache_behind(given[side], grown) for side in ("key", "value"))
    if key is None or value is None or key is value or given.get("is_causal"):
        return None
    query, mask, scale = given["query"], given.get("attn_mask"), given.get("scale")
    asked, own = query.meta["val"], grown[key].new.meta["val"]
    same = own.shape == grown[value].new.meta["val"].shape
    fits = same and asked.dtype in FLOATS and asked.ndim == 4
    fits = fits and known(asked.shape[2] == 1) and known(own.shape[2] == 1)
    fits = fits and int(asked.shape[3]) % EIGHT == 0 and not given.get("dropout_p")
    if not fits or (mask is not None and mask.meta["val"].ndim != 4):
        return None
    factor = float(int(asked.shape[3]) ** -0.5) if scale is None else float(scale)
    return _Layer(node, query, mask, factor, grown[key], grown[value])


def _apart(
    caches: Collection[fx.Node], layers: Collection[_Layer], draft: ExportedProgram
) -> set[fx.Node]:
    """Return the caches that one layer reads each, where all others of as many rows are such."""
    sides = [side for one in layers for side in (one.key, one.value)]
    readers = [side.past for side in sides]
    good = {side.past for side in sides if readers.count(side.past) == 1 and _only(side)}
    inputs = [n for n in draft.graph.find_nodes(op="placeholder") if _rank(n) == 4]
    sizes = {str(n.meta["val"].shape[ROWS]) for n in inputs if n not in good}
    return {one for one in good if str(one.meta["val"].shape[ROWS]) not in sizes}


def _only(side: Grown) -> bool:
    """Whether a cache is only grown, and what it grew to only read by attention and given back."""
    past = all(_grows(user, side.node) for user in side.past.users)
    return past and all(user.op == "output" or _leads_on(user) for user in side.node.users)


def _grows(user: fx.Node, grown: fx.Node) -> bool:
    """Whether a user of a cache puts the new row behind it, or nothing, or asks for its sizes."""
    if user is grown or user.target is torch.ops.aten.sym_size.int:
        return True
    nothing = user.target is torch.ops.aten.cat.default and bool(user.users)
    return nothing and all(_grows(one, grown) for one in user.users)


def _leads_on(node: fx.Node) -> bool:
    """Whether a value is nothing but what attention reads."""
    if operator_name(node) == FUSED:
        return True
    return len(node.users) == 1 and node.op == "call_function" and _leads_on(next(iter(node.users)))


def _rank(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.ndim if isinstance(value, Tensor) else 0


def _erase_reads(graph: fx.Graph, cache: fx.Node) -> None:
    """Erase what only led from a cache to attention that is gone."""
    for user in list(cache.users):
        if user.op == "call_function":
            _erase_reads(graph, user)
            if not user.users:
                graph.erase_node(user)


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_keys: Tensor,
    past_values: Tensor,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the attention ``[B, H, 1, D]`` and both grown caches."""
    batch, heads, _, width = query.shape
    own, total = key.shape[1], past_keys.shape[2] + 1
    last = torch.full([batch], total - 1, dtype=torch.int32)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, torch.finfo(query.dtype).min)
    bias = None if mask is None else mask.to(query.dtype).expand(*mask.shape[:2], 1, total)
    inputs = [
        query.reshape(batch, 1, heads * width),
        key.reshape(batch, 1, own * width),
        value.reshape(batch, 1, own * width),
        *(past_keys, past_values, last, torch.full([], total, dtype=torch.int32)),
        *(None, None, None, bias),
    ]
    out, keys, values = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        inputs,
        {"num_heads": int(heads), "kv_num_heads": int(own), "scale": scale},
        dtypes=(query.dtype, query.dtype, query.dtype),
        shapes=(
            [batch, 1, heads * width],
            [batch, own, total, width],
            [batch, own, total, width],
        ),
        version=1,
    )
    return out.reshape(batch, heads, 1, width), keys, values
