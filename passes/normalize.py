"""Normalize: the form every later pass reads: functional aten, no assertions, no dead code.

Before: the training IR that ``torch.export`` writes, with in-place ops, assertion chains (the count
of image placeholders among them) and dead layers.  After: the same values from functional aten
calls in which attention, linear and norm layers are still single nodes; a loop over equal pieces
of the rows is one run (``pieces.py``), a merge is one of few forms (``spread.py``, ``written.py``),
rows on a plane lie in one dim (``flat.py``); what several layers read by cross-attention is
threaded through them by aliases (``ir/cross.py``); a cache of fixed length that decode writes into
grows (``buffers.py``).  Sound because assertions have no result, an
alias is its operand, pieces do not read one another and functionalisation is torch's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx
from torch.export import ExportedProgram

from tokopt.ir.cross import thread
from tokopt.ir.program import Program
from tokopt.ir.rebuilt import copy_graph, rebuilt
from tokopt.passes.base import Pass, PassResult
from tokopt.passes.buffers import grow_all
from tokopt.passes.flat import flatten_planes
from tokopt.passes.pieces import batch_pieces
from tokopt.passes.snapshot import Snapshot
from tokopt.passes.spec import MADE, NORMALIZED, Spec
from tokopt.passes.spread import scatter_spread_rows
from tokopt.passes.written import unify_written_rows

ASSERTIONS = frozenset(
    {
        torch.ops.aten._assert_tensor_metadata.default,
        torch.ops.aten._assert_scalar.default,
        torch.ops.aten._assert_async.msg,
        torch.ops.aten._assert_async.default,
        torch.ops.aten.sym_constrain_range.default,
        torch.ops.aten.sym_constrain_range_for_size.default,
    }
)

CASTS = frozenset(
    getattr(torch.ops.aten.to, overload) for overload in ("dtype", "device", "dtype_layout")
)

NOOPS = frozenset({torch.ops.aten.alias.default, torch.ops.aten.lift_fresh_copy.default})


@dataclass(frozen=True)
class Normalize(Pass):
    """Bring every graph of a program into normal form."""

    ensures: ClassVar[tuple[Spec, ...]] = (NORMALIZED,)

    def run(self, program: Program) -> PassResult:
        """Return the program in normal form; the same one where it was already."""
        graphs = normalize_all(program.graphs)
        normal = replace(program, graphs=graphs)
        if Snapshot.of(program).difference(Snapshot.of(normal)) is None:
            return PassResult(program, modified=False)
        removed = _size(program) - _size(normal)
        return PassResult(normal, modified=True, statistics={"nodes removed": removed})


def normalize_all(graphs: Mapping[str, ExportedProgram]) -> dict[str, ExportedProgram]:
    """Return a model's programs in normal form; caches of fixed length grow (``buffers.py``)."""
    return grow_all({name: normalize(exported) for name, exported in graphs.items()})


def computes_alike(normal: ExportedProgram) -> bool:
    """Return whether normalising left every calculation as the archive has it."""
    return not any(MADE in node.meta for node in normal.graph.nodes)


def _size(program: Program) -> int:
    return sum(len(exported.graph.nodes) for exported in program.graphs.values())


def normalize(exported: ExportedProgram) -> ExportedProgram:
    """Return the program in normal form; the argument is left as it was.

    Tracing the program again, as functionalisation does, takes minutes on large graphs: it is done
    only where a call really writes in place or hides a subgraph.
    """
    graph = copy_graph(exported.graph)
    _inline(graph, exported.graph_module)
    _remove(graph, lambda node: node.target in ASSERTIONS)
    plain = rebuilt(exported, graph)
    if not all(_is_functional(node) for node in plain.graph.nodes):
        plain = plain.run_decompositions({})
        _remove(plain.graph, lambda node: node.target in ASSERTIONS)
    _bypass_noops(plain.graph)
    archived = set(plain.graph.nodes)
    for rewrite in (batch_pieces, scatter_spread_rows, unify_written_rows, flatten_planes):
        rewrite(plain.graph)
    for node in set(plain.graph.nodes) - archived:
        node.meta[MADE] = True
    thread(plain)
    return rebuilt(plain, plain.graph)


def _is_functional(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op != "get_attr" and not (schema is not None and schema.is_mutable)


def _inline(graph: fx.Graph, holders: fx.GraphModule) -> None:
    """Splice the subgraphs of ``with torch.no_grad()`` blocks, which a module holds, in."""
    for node in list(graph.nodes):
        if node.target is not torch.ops.higher_order.wrap_with_set_grad_enabled:
            continue
        _, holder, *operands = node.args
        inner = getattr(holders, holder.target).graph
        copies = dict(zip(inner.find_nodes(op="placeholder"), operands, strict=True))
        with graph.inserting_before(node):
            outputs: Any = graph.graph_copy(inner, copies)
        for user in list(node.users):
            user.replace_all_uses_with(outputs[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
        graph.erase_node(holder)


def _remove(graph: fx.Graph, unwanted: object) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and unwanted(node) and not node.users:  # type: ignore[operator]
            graph.erase_node(node)


def _is_same_cast(node: fx.Node) -> bool:
    """Return whether a call casts a value to the dtype and device it already has."""
    if node.target not in CASTS or node.kwargs.get("copy") or node.kwargs.get("memory_format"):
        return False
    before, after = node.all_input_nodes[0].meta["val"], node.meta["val"]
    return bool(before.dtype == after.dtype and before.device == after.device)


def _bypass_noops(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op == "call_function" and (node.target in NOOPS or _is_same_cast(node)):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
