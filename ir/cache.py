"""Cache: an input of decode to which the keys or values of its token are concatenated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, fx
from torch.export import ExportedProgram

from tokopt.ir.links import outputs_by_name

aten = torch.ops.aten


@dataclass(frozen=True)
class Cache:
    """A cache of decode: rows along ``dim``; ``output`` is the ``whole`` of it, or new rows."""

    input: str
    output: str
    dim: int
    whole: bool


def find_caches(graph: ExportedProgram, linked: Sequence[str]) -> tuple[Cache, ...] | None:
    """Return the linked inputs that grow; None where one grows that does not come back."""
    outputs = outputs_by_name(graph)
    found = []
    for grown in find_grown(graph):
        if grown.past.name in linked:
            back = [name for name, node in outputs.items() if grown.gives(node)]
            if len(back) != 1 or not isinstance(grown.past.meta["val"].shape[grown.dim], SymInt):
                return None
            whole = outputs[back[0]] is grown.node
            found.append(Cache(grown.past.name, back[0], grown.dim, whole))
    return tuple(found)


@dataclass(frozen=True)
class Grown:
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


def find_grown(graph: ExportedProgram) -> Iterator[Grown]:
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
                yield Grown(node, alias[parts[0]], parts[1], dim % node.meta["val"].ndim)
