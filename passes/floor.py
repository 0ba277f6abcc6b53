"""Floor: the same program as if the rows that stay had been known all along: no selector.

*Definition.*  The token floor of a plan is the original program with every stage's cut at the same
site to the same number of rows, where the rows that stay are simply the first ones of the stream:
the cut is a slice, and nothing scores, ranks, gathers or puts back.  Rows a tower hands to the
merge are filled up with zeros behind, outputs stay as short as they are.  Each segment of layers
thus runs on exactly as many rows as in the compiled program, so what the compiled program takes
beyond its floor is what selection itself costs: scores, choice, gathers, merging, restored outputs,
and what a runtime no longer fuses around them.

Sound as a measure: kernels take the time of their shapes, and all shapes behind a cut are the
compiled program's.  What it computes is not what the model means (the first rows of a prompt may
be text); nobody reads it.  Attention rewrites and quotas are no part of it.  Where rows come back
(``until``), the row that stands for those that went stays: it is part of the layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from tokopt.ir.dialect import OPS, is_dialect
from tokopt.ir.plan import Plan
from tokopt.ir.rebuilt import copy_graph, rebuilt
from tokopt.ir.trace import fake_mode_of, splice
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.method import Method, Taps


def floor_of(exported: ExportedProgram, plan: Plan) -> ExportedProgram:
    """Return the token floor of a plan: a program of the same inputs, in plain aten.

    ``exported`` is the original in normal form.  The outputs are the original's, in order, with the
    rows that are left.  Raises what ``apply_plan`` raises.
    """
    stages = tuple(replace(s, method=FIRST.name, options={}, quota="joint") for s in plan.stages)
    outputs = "kept" if plan.outputs == "full" else plan.outputs
    applied = apply_plan(exported, Plan(stages, outputs=outputs), lambda _: FIRST)
    graph = copy_graph(applied.exported.graph)
    mode = fake_mode_of(graph)
    plain = {OPS[name].overload: function for name, function in MEANING.items()}
    for node in [n for n in graph.nodes if n.op == "call_function" and is_dialect(n)]:
        with graph.inserting_before(node):
            made = splice(graph, plain[node.target], node.args, mode)
        node.replace_all_uses_with(made)
        graph.erase_node(node)
    return _without_trace(exported, applied.exported, graph)


def _without_trace(
    original: ExportedProgram, applied: ExportedProgram, graph: fx.Graph
) -> ExportedProgram:
    """Return a program with the original's outputs only: what only the trace read is dead."""
    count = len(original.graph_signature.output_specs)
    output = graph.output_node()
    output.args = (tuple(output.args[0])[:count],)  # type: ignore[arg-type]
    fewer = copy.copy(applied)
    fewer._graph_signature = copy.deepcopy(applied.graph_signature)
    del fewer._graph_signature.output_specs[count:]
    fewer._module_call_graph = original.module_call_graph
    return rebuilt(fewer, graph)


def _select(scores: Tensor, candidates: Tensor, total: int) -> Tensor:
    """Return the first rows."""
    first = torch.arange(total, device=scores.device)
    return first.expand([*scores.shape[:-1], total])


def _gather(x: Tensor, index: Tensor, dim: int, lead: list[int]) -> Tensor:
    """Return the first rows of a dim; rows that all items share become each one's own."""
    sizes = list(x.shape)
    for place, at in enumerate(lead):
        sizes[at] = index.shape[place]
    sizes[dim] = index.shape[-1]
    return x.narrow(dim, 0, index.shape[-1]).expand(sizes)


def _restore(x: Tensor, index: Tensor, length: int, dim: int, lead: list[int]) -> Tensor:
    """Return rows with zeros behind them."""
    sizes = list(x.shape)
    sizes[dim] = length - x.shape[dim]
    return torch.cat([x, x.new_zeros(sizes)], dim)


MEANING: Mapping[str, Callable[..., Tensor]] = {
    "select": _select,
    "gather": _gather,
    "restore": _restore,
}


def _nothing(taps: Taps) -> Tensor:
    return torch.zeros(taps.candidates.shape, device=taps.candidates.device)


FIRST = Method(
    name="first",
    paper="none: the token floor",
    roles=frozenset({"vision", "decoder", "resampler", "latent"}),
    score=_nothing,
    schedule=lambda setting: (),
    empties=True,
)
