"""Salient: how much attention reads each row of a cache, tapped at the attention that reads it.

Of a prompt a tenth of the rows are probes (ZipCache, arXiv 2405.14256, section 4.3): the last ones,
and as many spread evenly over the others, where the paper draws them: what a program chooses must
be the same in every run.  A row's salience is the mean attention it gets from the probes that see
it, over the query heads of a group.  In decode the one new row is the probe.

VidKV's own salience is the likeness of a row to the text, which asks which rows are text: here its
salient rows are these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram

from tokopt.ir.attention import FUSED
from tokopt.ir.cache_reads import SAME, cache_behind
from tokopt.ir.dims import arguments_of, operator_name
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.rebuilt import draft_of
from tokopt.ir.trace import fake_mode_of, splice
from tokopt.passes.apply_plan import with_outputs
from tokopt.passes.kv.coded_inputs import suppressed

FAINT = -100.0
"""Added to a score, this or less is a weight of 0."""

PART = 20
"""Of so many rows one is a late probe, and one an early one."""


def probes(rows: int) -> Tensor:
    """Return which of a prompt's rows are probes, int64, the last one behind all others."""
    late = rows // PART + 1
    at = torch.arange(late)
    return torch.cat([(2 * at + 1) * (rows - late) // (2 * late), at + (rows - late)])


def attended(
    query: Tensor,
    keys: Tensor,
    mask: Tensor | None,
    at: Tensor | None,
    *,
    heads: int,
    scale: float | None,
    causal: bool,
) -> Tensor:
    """Return fp32 ``[B, heads, T]``: the mean attention of each row by the probes that see it.

    ``query`` is ``[B, Hq, Q, D]``, ``keys`` ``[B, H, T, D]`` with H heads that Hq is a multiple of.
    ``at`` are the probes among the queries, all of them if None; ``mask`` as attention takes it.
    """
    if at is not None:
        query = query.index_select(2, at)
    grouped = query.float().unflatten(1, (keys.shape[1], -1))
    scale = keys.shape[3] ** -0.5 if scale is None else scale
    logits = (grouped @ keys.float().unsqueeze(2).transpose(3, 4)).flatten(1, 2) * scale
    seen = torch.ones_like(logits, dtype=torch.bool)
    if causal and at is not None:
        seen = seen & (torch.arange(keys.shape[2]) <= at[:, None])
    if mask is not None:
        of_probes = mask if at is None or mask.shape[2] == 1 else mask.index_select(2, at)
        if mask.dtype == torch.bool:
            seen = seen & of_probes
        else:
            seen = seen & (of_probes > FAINT)
            logits = logits + of_probes.float()
    weights = logits.masked_fill(~seen, torch.finfo(torch.float32).min).softmax(3) * seen
    mean = weights.sum(2) / seen.sum(2).clamp(min=1)
    return mean.unflatten(1, (heads, -1)).mean(2)


class Readers:
    """The fused attention of a graph; the salience of a cache is computed once for both sides."""

    def __init__(self, graph: fx.Graph, mode: FakeTensorMode) -> None:
        self._graph, self._mode = graph, mode
        self._fused = [n for n in graph.nodes if n.op == "call_function" and _is_fused(n)]
        self._made: dict[fx.Node, fx.Node] = {}

    def of_prompt(self, rows: fx.Node, side: str) -> fx.Node:
        """Return the salience of a prompt's keys or values, ``[B, H, T]``.

        Raises ``UnsupportedError`` where no fused attention of as many queries reads them.
        """
        base = rows
        while base.op == "call_function" and base.target in SAME:
            base = base.all_input_nodes[0]
        reader = self._reader(base, side)
        if reader not in self._made:
            given, heads = arguments_of(reader), int(rows.meta["val"].shape[1])
            query, keys, mask = given["query"], given["key"], given.get("attn_mask")
            found = partial(_of_prompt, _how(reader, heads))
            operands = [query, keys, *([] if mask is None else [mask])]
            with self._graph.inserting_before(reader):
                self._made[reader] = splice(self._graph, found, operands, self._mode)
        return self._made[reader]

    def of_step(self, all_rows: fx.Node, window: fx.Node, new: fx.Node) -> fx.Node:
        """Return the salience of the window's rows and the new one for it, ``[B, H, W + 1]``.

        ``all_rows`` are the keys that attention reads, window and new ones behind all others.
        """
        reader = self._reader(all_rows, "key")
        found = partial(_of_step, _how(reader, int(new.meta["val"].shape[1])))
        with self._graph.inserting_before(reader):
            operands = [arguments_of(reader)["query"], window, new]
            made: fx.Node = splice(self._graph, found, operands, self._mode)
        return made

    def _reader(self, rows: fx.Node, side: str) -> fx.Node:
        for node in self._fused:
            if cache_behind(arguments_of(node)[side], {rows}) is rows:
                return node
        raise UnsupportedError(
            "salient rows are told by the attention that reads a cache, and none was found",
            where=rows.name,
            expected=f"scaled_dot_product_attention with the cache as its {side}s",
            hint="export with attention=sdpa, or store the cache in int8, int4 or kivi",
        )


def with_salience(exported: ExportedProgram, outputs: Mapping[int, str]) -> ExportedProgram:
    """Return a program that gives the salience of caches, by place and side, behind its outputs."""
    draft = draft_of(exported)
    graph, mode = draft.graph, fake_mode_of(draft.graph)
    readers, given = Readers(graph, mode), graph.output_node().args[0]
    with suppressed(mode):
        further = [readers.of_prompt(given[place], side) for place, side in outputs.items()]
    return with_outputs(draft, graph, further)


def _is_fused(node: fx.Node) -> bool:
    return operator_name(node) == FUSED and len(arguments_of(node)["query"].meta["val"].shape) == 4


def _how(reader: fx.Node, heads: int) -> Callable[..., Tensor]:
    given: Mapping[str, object] = arguments_of(reader)
    scale = given.get("scale")
    factor = None if scale is None else float(str(scale))
    return partial(attended, heads=heads, scale=factor, causal=bool(given.get("is_causal")))


def _of_prompt(how: Callable[..., Tensor], query: Tensor, keys: Tensor, *mask: Tensor) -> Tensor:
    return how(query, keys, mask[0] if mask else None, probes(query.shape[2]))


def _of_step(how: Callable[..., Tensor], query: Tensor, window: Tensor, new: Tensor) -> Tensor:
    return how(query, torch.cat([window.to(new.dtype), new], 2), None, None)
