"""Replay: run rewritten programs on the same inputs, each only from where it differs.

A rewrite keeps the names of the nodes it keeps.  A node is *unchanged* where the original has one
of its name that calls the same on unchanged nodes: its value is the original's, computed once and
remembered as long as there is room.  Plans that cut late cost only what lies behind the cut, and
what nobody asks for is not computed at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from tokopt.ir.binding import bind
from tokopt.ir.trace import is_body

ROOM = 2 << 30
"""Bytes of the original's values that are remembered."""


class Replay:
    """Runs of programs that were made of one ``original``, on ``batches`` of inputs by name."""

    def __init__(
        self,
        original: ExportedProgram,
        batches: Sequence[Mapping[str, Tensor]],
        room: int = ROOM,
    ) -> None:
        self.original, self.batches, self.room = original, batches, room
        self._nodes = {node.name: node for node in original.graph.nodes}
        self._remembered: OrderedDict[tuple[int, str], Any] = OrderedDict()
        self._held = 0

    def run(self, exported: ExportedProgram, wanted: Iterable[str]) -> list[dict[str, Any]]:
        """Return the values of some nodes by name, for each batch."""
        return list(self.each(exported, wanted))

    def each(
        self, exported: ExportedProgram, wanted: Iterable[str], first: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Yield the same batch by batch, from batch number ``first`` on."""
        names = list(wanted)
        changed = self._changed(exported.graph)
        nodes = {node.name: node for node in exported.graph.nodes}
        needed, frontier = _needed([nodes[name] for name in names], lambda n: n in changed)
        for number, inputs in list(enumerate(self.batches))[first:]:
            with torch.no_grad():
                env = self._given(exported, inputs, needed | frontier)
                inner = [n for n in frontier if n not in env]
                env.update(zip(inner, self._values(number, [n.name for n in inner]), strict=True))
                _run(exported, needed, env, {nodes[name] for name in names})
            yield {name: env[nodes[name]] for name in names}

    def _changed(self, graph: fx.Graph) -> set[fx.Node]:
        changed: set[fx.Node] = set()
        for node in graph.nodes:
            before = self._nodes.get(node.name)
            if before is None or any(n in changed for n in node.all_input_nodes):
                changed.add(node)
            elif node.op != "placeholder" and _form(node) != _form(before):
                changed.add(node)
        return changed

    def _given(
        self, exported: ExportedProgram, inputs: Mapping[str, Tensor], used: set[fx.Node]
    ) -> dict[fx.Node, Any]:
        places = exported.graph.find_nodes(op="placeholder")
        specs = zip(places, exported.graph_signature.input_specs, strict=True)
        first = {  # what stages keep from call to call: zeros in the first one
            place.name: torch.zeros(place.meta["val"].shape)
            for place, spec in specs
            if spec.kind is InputKind.USER_INPUT and place.name not in self._nodes
        }
        values = zip(places, bind(exported, {**inputs, **first}), strict=True)
        return {place: value for place, value in values if place in used}

    def _values(self, batch: int, names: Sequence[str]) -> list[Any]:
        """Return values of the original, computed together where they are not remembered."""
        missing = [name for name in names if (batch, name) not in self._remembered]
        if missing:
            wanted = [self._nodes[name] for name in missing]
            known = {n for n in self._nodes.values() if (batch, n.name) in self._remembered}
            needed, frontier = _needed(wanted, lambda n: n not in known)
            env = self._given(self.original, self.batches[batch], needed | frontier)
            env.update({n: self._remembered[batch, n.name] for n in frontier if n in known})
            _run(self.original, needed, env, set(wanted))
            fresh = {node.name: env[node] for node in wanted}
        else:
            fresh = {}
        values = [fresh[n] if n in fresh else self._remembered[batch, n] for n in names]
        for name, value in zip(names, values, strict=True):
            self._remember((batch, name), value)
        return values

    def _remember(self, key: tuple[int, str], value: Any) -> None:
        if key not in self._remembered:
            self._remembered[key] = value
            self._held += _bytes(value)
        self._remembered.move_to_end(key)
        while self._held > self.room and len(self._remembered) > 1:
            self._held -= _bytes(self._remembered.popitem(last=False)[1])


def _form(node: fx.Node) -> Any:
    return node.target, str(node.args), str(node.kwargs)  # nodes print as their names


def _needed(wanted: Sequence[fx.Node], runs: Any) -> tuple[set[fx.Node], set[fx.Node]]:
    """Return what must be run to get some values, and the values that are given."""
    needed: set[fx.Node] = set()
    frontier: set[fx.Node] = set()
    waiting = list(wanted)
    while waiting:
        node = waiting.pop()
        if node in needed or node in frontier:
            continue
        if node.op == "placeholder" or not runs(node):
            frontier.add(node)
        else:
            needed.add(node)
            waiting += node.all_input_nodes
    return needed, frontier


def _run(
    exported: ExportedProgram, needed: set[fx.Node], env: dict[fx.Node, Any], keep: set[fx.Node]
) -> None:
    """Run nodes in order; values that nobody needs any more are let go."""
    left = {node: sum(user in needed for user in node.users) for node in (*needed, *env)}
    for node in exported.graph.nodes:
        if node not in needed:
            continue
        if is_body(node):
            env[node] = getattr(exported.graph_module, str(node.target))
            continue
        target: Any = node.target
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        env[node] = target(*args, **kwargs)
        for operand in node.all_input_nodes:
            left[operand] -= 1
            if not left[operand] and operand not in keep:
                del env[operand]


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(_bytes(v) for v in value) if isinstance(value, (list, tuple)) else 0
