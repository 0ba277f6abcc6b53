"""GroupQueryAttention: ``tokopt::cached_attention`` as ONNX Runtime's operator that reads codes.

No cache in full is made: the operator reads codes of 8 or 4 bits, and gives the cache with the new
row's codes behind it (which stands for the concatenation that was there).  Three things differ:

- It has no centres.  One of keys adds the same to all logits of a query, which softmax does not
  see; one of values is added behind attention, as weights sum to 1.
- It reads the new row as stored, and we as it is.  With the weight w that it gave that row (its
  output of weights) and d, by how much the row's logit is off, the sum of exponentials is off by
  ``1 + w (exp(d) - 1)``, and the row's share is ``w exp(d) v`` instead of ``w v'``: exact.
- Its kernels take one new row, fp32, head widths in eights, and codes of one type for both sides.
  All else is written out: rows are read back in full, and attention reads those.

Measured with ONNX Runtime 1.31.1's CPU kernels: added masks (also of -inf), grouped heads and
batches agree with the reference to 5e-7; older ones were not tried and are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxruntime
import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram

from tokopt.ir.dialect import OPS
from tokopt.ir.dialect.cached_attention import steps_of
from tokopt.ir.rebuilt import copy_graph, rebuilt
from tokopt.ir.trace import call, fake_mode_of, splice

OPERATOR = "cached_attention"
LEAST = (1, 31)
"""The oldest ONNX Runtime this was tried on."""

EIGHT = 8


def native() -> frozenset[str]:
    """Return what the CPU kernels of the installed ONNX Runtime take as it is."""
    installed = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    return frozenset({OPERATOR}) if installed >= LEAST else frozenset()


def with_grouped_query(exported: ExportedProgram) -> ExportedProgram:
    """Return the program without ``cached_attention``; the same one where it has none."""
    target = OPS[OPERATOR].overload
    if not any(node.target is target for node in exported.graph.nodes):
        return exported
    graph = copy_graph(exported.graph)
    mode = fake_mode_of(graph)
    for node in graph.find_nodes(op="call_function", target=target):
        codes: Sequence[fx.Node] = node.args[3:5]
        grown = [_grown(one) for one in codes]
        with graph.inserting_before(node):
            if None in grown or not _fits(node):
                made = _written_out(graph, node, mode)
            else:
                parts = [part for one in grown for part in one or ()]
                given = (*node.args[:3], *parts, *node.args[5:])
                made, *caches = splice(graph, _attended, given, mode)
                _read_behind(node, codes, caches)
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        for one in codes:
            if not one.users:
                graph.erase_node(one)
    return rebuilt(exported, graph)


def _fits(node: fx.Node) -> bool:
    """Whether the operator takes the call."""
    given: Any = node.args
    query, key, _, *codes = (one.meta["val"] for one in given[:5])
    types = {one.dtype for one in codes}
    one_row = query.shape[2] == key.shape[2] == 1 and query.dtype == torch.float32
    return one_row and query.shape[3] % EIGHT == 0 and types in ({torch.int8}, {torch.uint8})


def _written_out(graph: fx.Graph, node: fx.Node, mode: FakeTensorMode) -> fx.Node:
    """Insert the attention over rows read back in full, in the query's type."""
    args: Any = node.args
    *given, bias, scale = args
    keys, values = splice(graph, _read_back, given, mode)
    if isinstance(bias, fx.Node):
        dtype = node.meta["val"].dtype
        bias = splice(graph, lambda added: added.to(dtype), [bias], mode)
    attention = torch.ops.aten.scaled_dot_product_attention.default
    return call(graph, attention, given[0], keys, values, bias, scale=scale, mode=mode)


def _read_back(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor,
    key_centre: Tensor,
    value_scale: Tensor,
    value_centre: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return all rows of both sides, ``[B, H, T, d]``."""
    old, times = keys.shape[2] - key.shape[2], query.shape[1] // key.shape[1]
    past_keys = steps_of(keys.narrow(2, 0, old)) * key_scale + key_centre
    past_values = steps_of(values.narrow(2, 0, old)) * value_scale + value_centre
    whole = [torch.cat([past_keys.to(query.dtype), key], 2)]
    whole += [torch.cat([past_values.to(query.dtype), value], 2)]
    if times > 1:
        whole = [one.unsqueeze(2).expand(-1, -1, times, -1, -1).flatten(1, 2) for one in whole]
    return whole[0], whole[1]


def _grown(codes: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the past and the new rows that a cache was made of."""
    given: Any = codes.args
    same = codes.target is torch.ops.aten.cat.default and len(given[0]) == 2
    return tuple(given[0]) if same and given[1] in (2, -2) else None


def _read_behind(node: fx.Node, codes: Sequence[fx.Node], caches: Sequence[fx.Node]) -> None:
    """Let the grown caches be read from the operator, but where they are read in front of it."""
    behind, current = set[fx.Node](), node.next
    while current.op != "root":
        behind.add(current)
        current = current.next
    for one, cache in zip(codes, caches, strict=True):
        one.replace_all_uses_with(cache, delete_user_cb=behind.__contains__)


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_keys: Tensor,
    new_key: Tensor,
    past_values: Tensor,
    new_value: Tensor,
    key_scale: Tensor,
    key_centre: Tensor,
    value_scale: Tensor,
    value_centre: Tensor,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the attention and both grown caches, of one new row."""
    batch, heads, _, width = query.shape
    own, total = key.shape[1], past_keys.shape[2] + 1
    centred, mixed = key - key_centre, value - value_centre
    last = torch.full([batch], total - 1, dtype=torch.int32)
    inputs = [
        query.reshape(batch, 1, heads * width),
        centred.reshape(batch, 1, own * width),
        mixed.reshape(batch, 1, own * width),
        *(past_keys, past_values, last, torch.full([], total, dtype=torch.int32)),
        *(None, None, None, None if bias is None else bias.expand(*bias.shape[:2], 1, total)),
        *(None, key_scale, value_scale),
    ]
    codes, stored = new_key.dtype, int(new_key.shape[3])
    out, keys, values, weights = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        inputs,
        {
            "num_heads": int(heads),
            "kv_num_heads": int(own),
            "scale": scale,
            "k_quant_type": "PER_CHANNEL",
            "v_quant_type": "PER_CHANNEL",
            "kv_cache_bit_width": 8 * stored // int(width),
            "qk_output": 2,
        },
        dtypes=(query.dtype, codes, codes, query.dtype),
        shapes=(
            [batch, 1, heads * width],
            [batch, own, total, stored],
            [batch, own, total, stored],
            [batch, heads, 1, total],
        ),
        version=1,
    )
    weight = weights.narrow(3, total - 1, 1).reshape(batch, own, -1, 1)
    off = query.reshape(batch, own, -1, width) * (centred - steps_of(new_key) * key_scale)
    more = torch.exp(off.sum(-1, keepdim=True) * scale)
    rows = out.reshape(batch, own, -1, width)
    rows = rows + weight * (more * mixed - steps_of(new_value) * value_scale)
    rows = rows / (1 + weight * (more - 1)) + value_centre
    return rows.reshape(batch, heads, 1, width), keys, values
