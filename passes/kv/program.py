"""Program: caches that programs take and give, stored in formats instead of in full.

What is handed on (``kept.py``) is one tensor of the cache's own dims, under its name; it is read
back once, right at the input.  Where a format codes rows in blocks, what was coded comes in as
further inputs, and the cache's free size counts the rows of the window alone: it is put in as that
and the coded rows, and every recorded value is computed again.  A grown cache that goes out is what
came in with the new rows behind it: what was stored is never stored again.  A format of pools codes
all of a prompt where its attention is, and decode tells the salience of the rows that wait: both
are further outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram

from tokopt.ir.cache import Grown, find_grown
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.new_inputs import call_with
from tokopt.ir.rebuilt import draft_of, rebuilt
from tokopt.ir.stored import add_stored
from tokopt.ir.trace import call, compute_values, fake_mode_of, splice
from tokopt.passes.apply_plan import with_outputs
from tokopt.passes.kv.coded_inputs import add_coded, of_length, suppressed
from tokopt.passes.kv.kept import Kept
from tokopt.passes.kv.raising import StoredRows, raise_attention
from tokopt.passes.kv.salient import Readers

aten = torch.ops.aten

MANY = 64
"""Units of a prompt that is coded, while shapes are computed: no pool has one segment or group."""


def with_stored(
    exported: ExportedProgram,
    inputs: Mapping[str, Kept],
    outputs: Mapping[int, Kept],
    raised: bool = False,
) -> ExportedProgram:
    """Return a program that takes ``inputs`` (by name) and gives ``outputs`` (by place) stored.

    Behind its outputs come the ``parts`` of each of ``outputs`` that is a prompt's, in order, and
    then the salience of each of ``inputs`` that are ranked keys (``ranked``).  ``raised``:
    attention over them is ``tokopt::cached_attention`` where it fits (``raising.py``).
    Raises ``UnsupportedError`` for a cache whose dims are not ``[B, H, T, D]``.
    """
    draft = draft_of(exported)
    graph, mode = draft.graph, fake_mode_of(draft.graph)
    places = add_stored(draft, _constants([*inputs.values(), *outputs.values()]))
    grown = {one.node: one for one in find_grown(draft)}
    readers = Readers(graph, mode)
    nodes = {node.name: node for node in graph.find_nodes(op="placeholder")}
    (end,) = graph.find_nodes(op="output")
    for name in inputs:
        _check(nodes[name])
    dtypes = {name: nodes[name].meta["val"].dtype for name in inputs}
    with suppressed(mode):
        coded = add_coded(draft, {nodes[name]: kept for name, kept in inputs.items()}, mode)
        first = next(node for node in graph.nodes if node.op != "placeholder")
        for name, kept in inputs.items():
            cache, users = nodes[name], list(nodes[name].users)
            with graph.inserting_before(first):
                stored = _spliced(graph, kept.handed, kept, places, [cache], mode)
                cache.meta["val"] = stored.meta["val"]
                graph.erase_node(stored)  # only its form was wanted
                read = partial(_read, kept, dtypes[name], list(coded[name]))
                given = [cache, *coded[name].values()]
                rows = _spliced(graph, read, kept, places, given, mode)
            for user in users:
                user.replace_input_with(cache, rows)
        if any(coded.values()):
            compute_values(graph, mode)
    stored_rows = _stored_rows(graph, grown, inputs, places, mode) if raised else {}
    raise_attention(graph, stored_rows, mode)
    given, further = list(end.args[0]), list[fx.Node]()
    with suppressed(mode), graph.inserting_before(end):
        for place, kept in outputs.items():
            one = grown.get(given[place])
            _check(given[place])
            new = given[place] if one is None else one.new
            if kept.parts and one is None and not _is_new(new, grown):
                salience = readers.of_prompt(new, kept.side)
                state = _pooled(graph, kept, places, new, salience, mode)
                given[place] = state[kept.handed_name]
                further += [state[name] for name in kept.parts]
                continue
            if one is not None and one.node in stored_rows:
                given[place] = stored_rows[one.node].codes
                continue
            stored = _spliced(graph, kept.handed, kept, places, [new], mode)
            if one is not None:
                stored = call(graph, aten.cat.default, [one.past, stored], one.dim, mode=mode)
            given[place] = stored
        past = {one.past.name: one for one in grown.values()}
        for name in ranked(inputs):
            one = past[name]
            further.append(readers.of_step(one.node, one.past, one.new))
    end.args = (tuple(given),)
    names = [node.name for parts in coded.values() for node in parts.values()]
    if further:
        return with_outputs(draft, graph, further, names)
    made = rebuilt(draft, graph)
    call_with(made, names)
    return made


def ranked(inputs: Mapping[str, Kept]) -> list[str]:
    """Return the caches whose rows are ranked when they leave the window: keys, for both sides."""
    ranks = {n for n, kept in inputs.items() if kept.windowed is not None and kept.windowed.ranks}
    return [name for name in inputs if name in ranks and inputs[name].side == "key"]


def _is_new(rows: fx.Node, grown: Mapping[fx.Node, Grown]) -> bool:
    """Whether an output is what a cache grows by, or its last row."""
    return any(one.gives(rows) for one in grown.values())


def _pooled(
    graph: fx.Graph,
    kept: Kept,
    places: Mapping[str, fx.Node],
    rows: fx.Node,
    salience: fx.Node,
    mode: FakeTensorMode,
) -> dict[str, fx.Node]:
    """Insert what a prompt's rows become, all tensors of it."""
    names = [*kept.parts, kept.handed_name]

    def stored(rows: Tensor, salience: Tensor, constants: Mapping[str, Tensor]) -> Any:
        state = kept.stored(rows, salience, constants)
        return tuple(state[name].contiguous() for name in names)

    assert kept.windowed is not None
    count = kept.windowed.waits + MANY * kept.windowed.unit
    long = {node: of_length(node.meta["val"], count, mode) for node in (rows, salience)}
    made = _spliced(graph, stored, kept, places, [rows, salience], mode, long)
    return dict(zip(names, made, strict=True))


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
            new = _spliced(graph, kept.handed, kept, places, [one.new], mode)
            codes = call(graph, aten.cat.default, [one.past, new], one.dim, mode=mode)
        found[node] = StoredRows(codes, scale, centre, one.new)
    return found


def _constants(every: Sequence[Kept]) -> dict[str, Tensor]:
    return {f"{kept.name}_{name}": t for kept in every for name, t in kept.constants.items()}


def _read(kept: Kept, dtype: torch.dtype, names: Sequence[str], *values: Any) -> Tensor:
    """Return the rows of what is handed on and coded; behind them come the constants."""
    handed, coded, constants = values[0], values[1 : 1 + len(names)], values[-1]
    return kept.read(dtype, handed, dict(zip(names, coded, strict=True)), constants)


def _spliced(
    graph: fx.Graph,
    function: Callable[..., Any],
    kept: Kept,
    places: Mapping[str, fx.Node],
    operands: Sequence[fx.Node],
    mode: FakeTensorMode,
    values: Mapping[fx.Node, Any] | None = None,
) -> Any:
    """Insert what a function does to operands and the constants of a side."""
    names = list(kept.constants)

    def applied(*values: Tensor) -> Any:
        own = values[len(operands) :]
        return function(*values[: len(operands)], dict(zip(names, own, strict=True)))

    given = [*operands, *(places[f"{kept.name}_{name}"] for name in names)]
    return splice(graph, applied, given, mode, values=values)


def _check(cache: fx.Node) -> None:
    value = cache.meta["val"]
    if value.ndim != 4 or not value.is_floating_point():
        raise UnsupportedError(
            f"a cache is {value.dtype} {list(value.shape)}",
            where=cache.name,
            expected="floats of [batch, heads, rows, head width]",
        )
