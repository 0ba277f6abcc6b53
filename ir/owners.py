"""Owners: which program each call of a rewritten joined graph goes to, so that least crosses.

Calls that were there before the rewrite stay where they were.  What was inserted is free: a
restore between tower and decoder may be done on either side.  Where the fewest bytes are handed
over is a minimum cut: a value costs its bytes once if any reader is on the other side, a call
cannot run before what it reads.  Weights are on both sides, and sizes cost nothing: they are read
anew off whatever tensor has them (``part.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from tokopt.ir.dims import describe
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.join import OWNER
from tokopt.ir.trace import is_body

FREE_SIZE = 64
"""What a free size counts for where two ways to part a graph are weighed."""


def find_owners(joined: ExportedProgram, names: Sequence[str]) -> dict[fx.Node, int]:
    """Return the place in ``names`` (programs as they run) of every input and tensor call.

    Raises ``UnsupportedError`` where a call of one program has come to depend on an input that
    only a later program is given.
    """
    free = _anywhere(joined)
    place = {name: number for number, name in enumerate(names)}
    nodes = [n for n in joined.graph.nodes if n.op != "output" and n not in free]
    fixed = {n: place[n.meta[OWNER]] for n in nodes if n.meta.get(OWNER) in place}
    _refuse_backwards(nodes, fixed, names)
    owners: dict[fx.Node, int] = {}
    for number in range(len(names) - 1):
        left = [n for n in nodes if n not in owners]
        for node in _early(left, fixed, number):
            owners[node] = number
    return {node: owners.get(node, len(names) - 1) for node in nodes}


def is_size(node: fx.Node) -> bool:
    """Return whether a call gives a size rather than tensors."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat | int)


def _anywhere(joined: ExportedProgram) -> set[fx.Node]:
    """Return stored tensors, sizes and bodies of loops: every program may have them."""
    kinds = {
        s.arg.name: s.kind for s in joined.graph_signature.input_specs if hasattr(s.arg, "name")
    }
    return {
        node
        for node in joined.graph.nodes
        if (node.op == "placeholder" and kinds.get(node.name) is not InputKind.USER_INPUT)
        or (node.op == "call_function" and is_size(node))
        or is_body(node)
    }


def _refuse_backwards(
    nodes: Sequence[fx.Node], fixed: dict[fx.Node, int], names: Sequence[str]
) -> None:
    """Refuse a call that would need what a later program computes."""
    earliest: dict[fx.Node, int] = {}
    for node in nodes:
        needs = max((earliest[a] for a in node.all_input_nodes if a in earliest), default=0)
        here = fixed.get(node)
        if here is not None and here < needs:
            raise UnsupportedError(
                f"a stage makes program {names[here]!r} depend on what {names[needs]!r} is given",
                where=describe(node),
                expected="a method that scores by what the program in front computes",
                hint="another method (--method), or export the whole model as one program",
            )
        earliest[node] = needs if here is None else here


def _early(nodes: Sequence[fx.Node], fixed: dict[fx.Node, int], number: int) -> list[fx.Node]:
    """Return the nodes on the early side of the cheapest cut behind program ``number``."""
    graph, inside = networkx.DiGraph(), set(nodes)
    graph.add_nodes_from(("early", "late"))

    def end(node: fx.Node) -> Any:
        if node in fixed:
            return "early" if fixed[node] <= number else "late"
        return node

    for node in nodes:
        users = {end(user) for user in node.users if user in inside}
        if end(node) == "late" or users <= {"early"}:
            graph.add_edges_from((user, end(node)) for user in users - {end(node)})
            continue
        value = node.meta.get("val")
        cost = {"capacity": _bytes(value)} if isinstance(value, torch.Tensor) else {}
        graph.add_edge(end(node), ("given", node), **cost)
        graph.add_edges_from((("given", node), user) for user in users)
        graph.add_edges_from((user, end(node)) for user in users - {"late", end(node)})
    early = networkx.minimum_cut(graph, "early", "late")[1][0]
    return [node for node in nodes if end(node) in early]


def _bytes(value: torch.Tensor) -> int:
    total = value.dtype.itemsize
    for size in value.shape:
        total *= size if isinstance(size, int) else FREE_SIZE
    return max(total, 1)
