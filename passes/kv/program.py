"""Program: caches that programs take and give, stored in formats instead of in full.

For formats that are ``rowwise``: each row is stored alone, in one tensor of the cache's own dims.
So a cache keeps its name and its dim of rows; what comes in is read back once, right at the input,
and what goes out is stored.  A grown cache that goes out is the stored one with the stored new rows
behind it: what was stored is never stored again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram

from tokopt.ir.cache import Grown, find_grown
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.rebuilt import draft_of, rebuilt
from tokopt.ir.stored import add_stored
from tokopt.ir.trace import call, fake_mode_of, splice
from tokopt.passes.kv.format import Format, Side
from tokopt.passes.kv.raising import StoredRows, raise_attention

aten = torch.ops.aten


@dataclass(frozen=True)
class Kept:
    """How a side of a layer is stored, ``rowwise``; its constants are called ``name`` first."""

    name: str
    side: Side
    format: Format
    constants: Mapping[str, Tensor]

    def store(self, rows: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Return rows ``[B, H, T, D]`` as stored."""
        (stored,) = self.format.quantize(self.side, rows, constants, None).values()
        return stored

    def read(self, dtype: torch.dtype, stored: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Return the rows of what is stored."""
        assert self.format.rowwise is not None
        state = {self.format.rowwise: stored}
        return self.format.dequantize(self.side, state, constants).to(dtype)


def with_stored(
    exported: ExportedProgram,
    inputs: Mapping[str, Kept],
    outputs: Mapping[int, Kept],
    raised: bool = False,
) -> ExportedProgram:
    """Return a program that takes ``inputs`` (by name) and gives ``outputs`` (by place) stored.

    ``raised``: attention over them is ``tokopt::cached_attention`` where it fits (``raising.py``).
    Raises ``UnsupportedError`` for a cache whose dims are not ``[B, H, T, D]``.
    """
    draft = draft_of(exported)
    graph, mode = draft.graph, fake_mode_of(draft.graph)
    places = add_stored(draft, _constants([*inputs.values(), *outputs.values()]))
    grown = {one.node: one for one in find_grown(draft)}
    nodes = {node.name: node for node in graph.find_nodes(op="placeholder")}
    (end,) = graph.find_nodes(op="output")
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for name, kept in inputs.items():
        cache = nodes[name]
        _check(cache)
        full, users = cache.meta["val"], list(cache.users)
        with graph.inserting_before(first):
            stored = _spliced(graph, kept.store, kept, places, cache, mode)
            cache.meta["val"] = stored.meta["val"]
            graph.erase_node(stored)  # only its form was wanted
            rows = _spliced(graph, partial(kept.read, full.dtype), kept, places, cache, mode)
        for user in users:
            user.replace_input_with(cache, rows)
    stored_rows = _stored_rows(graph, grown, inputs, places, mode) if raised else {}
    raise_attention(graph, stored_rows, mode)
    given = list(end.args[0])
    with graph.inserting_before(end):
        for place, kept in outputs.items():
            one = grown.get(given[place])
            _check(given[place])
            new = given[place] if one is None else one.new
            if one is not None and one.node in stored_rows:
                given[place] = stored_rows[one.node].codes
                continue
            stored = _spliced(graph, kept.store, kept, places, new, mode)
            if one is not None:
                stored = call(graph, aten.cat.default, [one.past, stored], one.dim, mode=mode)
            given[place] = stored
    end.args = (tuple(given),)
    return rebuilt(draft, graph)


def _stored_rows(
    graph: fx.Graph,
    grown: Mapping[fx.Node, Grown],
    inputs: Mapping[str, Kept],
    places: Mapping[str, fx.Node],
    mode: FakeTensorMode,
) -> dict[fx.Node, StoredRows]:
    """Store the new rows of every cache that has a scale; return the caches by their full rows."""
    found = {}
    for node, one in grown.items():
        kept = inputs.get(one.past.name)
        if kept is None or one.dim != 2 or not {"scale", "centre"} <= kept.constants.keys():
            continue
        scale, centre = (places[f"{kept.name}_{name}"] for name in ("scale", "centre"))
        with graph.inserting_before(node):
            new = _spliced(graph, kept.store, kept, places, one.new, mode)
            codes = call(graph, aten.cat.default, [one.past, new], one.dim, mode=mode)
        found[node] = StoredRows(codes, scale, centre, one.new)
    return found


def _constants(every: Sequence[Kept]) -> dict[str, Tensor]:
    return {f"{kept.name}_{name}": t for kept in every for name, t in kept.constants.items()}


def _spliced(
    graph: fx.Graph,
    function: Callable[..., Tensor],
    kept: Kept,
    places: Mapping[str, fx.Node],
    rows: fx.Node,
    mode: FakeTensorMode,
) -> fx.Node:
    """Insert what a function does to rows and the constants of a side."""
    names = list(kept.constants)

    def applied(value: Tensor, *constants: Tensor) -> Tensor:
        return function(value, dict(zip(names, constants, strict=True)))

    given = [rows, *(places[f"{kept.name}_{name}"] for name in names)]
    node: fx.Node = splice(graph, applied, given, mode)
    return node


def _check(cache: fx.Node) -> None:
    value = cache.meta["val"]
    if value.ndim != 4 or not value.is_floating_point():
        raise UnsupportedError(
            f"a cache is {value.dtype} {list(value.shape)}",
            where=cache.name,
            expected="floats of [batch, heads, rows, head width]",
        )
