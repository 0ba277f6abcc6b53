"""Decoding: how a program that follows the main one makes the next token, found from its graph.

A decode step concatenates each cache it is given with the rows of its own token, and gives back
the whole or the new rows.  Its token is the input that looks rows up in the table in which the main
program looks up its prompt; what is left and has the token's shape is the position.  Anything else
is not guessed at: such a program is run by whoever knows what it takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch.export import ExportedProgram

from tokopt.ir.links import Link, outputs_by_name
from tokopt.ir.tensors import tensor_inputs

aten = torch.ops.aten


@dataclass(frozen=True)
class Cache:
    """A cache of decode: rows along ``dim``; ``output`` is the ``whole`` of it, or new rows."""

    input: str
    output: str
    dim: int
    whole: bool


@dataclass(frozen=True)
class Decoding:
    """Names of ``program`` (decode) and of the main one's ``prompt`` and ``logits``.

    ``position`` is None where decode is not told it; ``places`` is how many positions have a row
    in a table, None where they are computed.
    """

    program: str
    prompt: str
    logits: str
    token: str
    position: str | None
    next_logits: str
    caches: tuple[Cache, ...]
    places: int | None = None


def find_decoding(
    graphs: Mapping[str, ExportedProgram], links: Sequence[Link], main: str
) -> Decoding | None:
    """Return how the one program that takes what ``main`` gives decodes; None where it does not.

    ``graphs`` are in normal form.
    """
    following = {link.target for link in links if link.source == main}
    if len(following) != 1:
        return None
    (name,) = following
    graph, linked = graphs[name], [link.input for link in links if link.target == name]
    caches = _caches(graph, linked)
    words, prompts = _lookups(graph), _lookups(graphs[main])
    own = {t.name: t.value for t in tensor_inputs(graph) if t.name not in linked}
    pairs = {
        (token, prompt)
        for token in own
        for prompt in prompts
        if any(_same(a, b) for a in words.get(token, []) for b in prompts[prompt])
    }
    handed = {link.output for link in links if link.source == main}
    first = [o for o in outputs_by_name(graphs[main]) if o not in handed]
    returned = {cache.output for cache in caches or ()}
    later = [o for o in outputs_by_name(graph) if o not in returned]
    if not caches or len(pairs) != 1 or len(first) != 1 or len(later) != 1:
        return None
    ((token, prompt),) = pairs
    rest = [one for one in own if one != token]
    if len(rest) > 1 or own[token].ndim != 2 or not all(_like(own[r], own[token]) for r in rest):
        return None
    tables = [table.shape[0] for table in words.get(rest[0], [])] if rest else []
    position, places = rest[0] if rest else None, min(tables, default=None)
    return Decoding(name, prompt, first[0], token, position, later[0], caches, places)


def _caches(graph: ExportedProgram, linked: Sequence[str]) -> tuple[Cache, ...] | None:
    """Return the linked inputs that grow; None where one grows that does not come back."""
    outputs = outputs_by_name(graph)
    found = []
    for grown in _grown(graph):
        if grown.past.name in linked:
            back = [name for name, node in outputs.items() if grown.gives(node)]
            if len(back) != 1 or not isinstance(grown.past.meta["val"].shape[grown.dim], SymInt):
                return None
            whole = outputs[back[0]] is grown.node
            found.append(Cache(grown.past.name, back[0], grown.dim, whole))
    return tuple(found)


@dataclass(frozen=True)
class _Grown:
    """``node`` puts ``new`` rows behind the input ``past``."""

    node: fx.Node
    past: fx.Node
    new: fx.Node
    dim: int

    def gives(self, output: fx.Node) -> bool:
        """Whether an output is the grown cache, what it grew by, or its last row."""
        if output in (self.node, self.new):
            return True
        call: Any = (*output.args, 0, None)[:3]
        same = output.target is aten.slice.Tensor and call[0] is self.node
        return bool(same and call[1] % self.node.meta["val"].ndim == self.dim and call[2] == -1)


def _grown(graph: ExportedProgram) -> Iterator[_Grown]:
    """Yield every concatenation of an input and something; with nothing, it is that input."""
    alias: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            alias[node] = node
        elif node.target is aten.cat.default:
            every, dim = (*node.args, 0)[:2]
            parts = [part for part in every if 0 not in part.meta["val"].shape]
            if len(parts) == 1 and parts[0] in alias:
                alias[node] = alias[parts[0]]
            elif len(parts) == 2 and parts[0] in alias:
                yield _Grown(node, alias[parts[0]], parts[1], dim % node.meta["val"].ndim)


def _lookups(graph: ExportedProgram) -> dict[str, list[Tensor]]:
    """Return, by input, the stored tables in which its values are looked up."""
    signature = graph.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tables = {name: graph.state_dict.get(key) for name, key in stored.items()}
    inputs = {tensor.name for tensor in tensor_inputs(graph)}
    found: dict[str, list[Tensor]] = {}
    for node in graph.graph.nodes:
        if node.target is aten.embedding.default:
            table = tables.get(node.args[0].name)
            for name in inputs & _values_behind(node.args[1]):
                found.setdefault(name, []).extend([] if table is None else [table])
    return found


def _values_behind(node: fx.Node) -> set[str]:
    """Return the names of all tensors that a value is computed from; sizes are none."""
    seen, todo = set[str](), [node]
    while todo:
        one = todo.pop()
        if one.name not in seen and isinstance(one.meta.get("val"), Tensor):
            seen.add(one.name)
            todo += one.all_input_nodes
    return seen


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))


def _like(value: Tensor, token: Tensor) -> bool:
    """Whether whole numbers have the token's shape, or that behind further axes."""
    tail = value.shape[value.ndim - token.ndim :]
    return value.dtype == token.dtype and value.ndim <= 3 and list(tail) == list(token.shape)
