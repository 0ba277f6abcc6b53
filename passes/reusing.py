"""Reusing: rewrite the layers of a tower so that few rows are computed, the others remembered.

Two programs of one plan.  The *update* has, per layer, keys of all rows, the choice of the rows
that changed most, and everything else on those rows: their queries and values, the output
projection, the feed-forward part.  What they give is scattered into what the reference gave.  The
*reference* is the original with those values as further outputs.  A counter goes round with them:
the update hands on one more, and at 0 (the first call, and every so many) the reference is run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from tokopt.ir.dialect import OPS
from tokopt.ir.dims import arguments_of
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.layout import layout_of, lead_axes
from tokopt.ir.region import Region
from tokopt.passes.budget import row_count
from tokopt.passes.cut import Cut
from tokopt.passes.reused import AGE, Reused, ReusedLayer
from tokopt.passes.stack_state import StackState
from tokopt.passes.stage import Inserted
from tokopt.passes.stream_view import stream_view
from tokopt.passes.workspace import Workspace, aten


@dataclass
class Remembered:
    """What goes from call to call: ``shapes`` of all states, ``given`` those that come out.

    ``choices``: the rows computed anew, a layer at a time.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    given: dict[str, fx.Node] = field(default_factory=dict)
    choices: list[Inserted] = field(default_factory=list)


@dataclass(frozen=True)
class _State:
    """A value of the original that is kept, as ``see`` shows it."""

    name: str
    node: fx.Node
    see: Callable[[Tensor], Tensor]


def insert_reuse(work: Workspace, reused: Reused, reference: bool) -> Remembered:
    """Insert the update, or the reference's outputs; return what is remembered and was chosen."""
    found = Remembered({AGE: (1,)})
    layers = [_Layer(work, reused, layer) for layer in reused.layers]
    states = [state for layer in layers for state in layer.states]
    for state in states:
        with work.mode:
            shape = state.see(state.node.meta["val"]).shape
        if not all(isinstance(size, int) for size in shape):
            raise UnsupportedError(
                f"{reused.rewrite.name} remembers the rows of each item, and their number is free",
                where=reused.stack.role,
                expected="a program exported for a constant batch",
            )
        found.shapes[state.name] = tuple(shape)
    (output,) = work.graph.find_nodes(op="output")
    age = work.input(AGE, (1,))
    with work.graph.inserting_before(output):
        found.given[AGE] = work.splice(lambda a: torch.remainder(a + 1, reused.every), [age])
    if reference:
        for state in states:
            with work.graph.inserting_before(state.node.next):
                found.given[state.name] = work.splice(_kept(state), [state.node])
        return found
    held = {state.name: work.input(state.name, found.shapes[state.name]) for state in states}
    found.choices += [layer.update(held) for layer in layers]
    return found


def _kept(state: _State) -> Callable[[Tensor], Tensor]:
    return lambda value: state.see(value).float()


class _Layer:
    """One layer under rewriting."""

    def __init__(self, work: Workspace, reused: Reused, layer: ReusedLayer) -> None:
        self.work, self.reused, self.layer = work, reused, layer
        stack, value = reused.stack, layer.blocks[0].input
        self.lead = lead_axes(work.axes[value], stack.stack.dim, stack.tokens)
        site = replace(stack.sites[0], value=value, dim=stack.stack.dim, tokens=stack.tokens.root)
        self.count = row_count(stack)
        whole, few = (StackState(n, n) for n in (self.count, reused.keep))
        self.whole = stream_view(work, stack, site, whole)
        self.few = stream_view(work, stack, site, few)
        attention = layer.attention
        sides = {"key": attention.key, "value": attention.value}
        self.layouts = {
            name: layout_of(node, work.facts.dims, self.lead, -2, -1)
            for name, node in {**sides, "query": attention.query}.items()
        }
        self.states = [
            *(_State(layer.state(n), node, self.layouts[n].apply) for n, node in sides.items()),
            *(
                _State(name, block.output, self.whole.see)
                for name, block in zip(layer.added, layer.blocks, strict=True)
            ),
        ]

    def update(self, held: dict[str, fx.Node]) -> Inserted:
        """Insert the layer's update; return what was chosen."""
        work, layer = self.work, self.layer
        attention, short = layer.attention.node, layer.short[0]
        ahead = short[: short.index(attention)]
        for node in ahead:  # they wait for the keys, which decide whose rows they are
            attention.prepend(node)
        with work.graph.inserting_before(ahead[0] if ahead else attention):
            index, rows, scores = self._choose(held[layer.state("key")])
        whole = arguments_of(attention)
        tokens = self.reused.stack.tokens.root
        sizes = (self.reused.keep, self.count)
        cut = Cut(work, layer.blocks[0].input, tokens, self.lead, index, *sizes)
        for number, block in enumerate(layer.blocks):
            cut = replace(cut, value=block.input, gathered={})
            cut.shorten(Region(short=list(layer.short[number])))
            if number == 0:
                self._attend(whole["key"], whole.get("attn_mask"), held, rows)
                work.recompute([attention])
            self._put_back(block.output, held[layer.added[number]], rows)
        return Inserted(rows, scores)

    def _choose(self, then: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node]:
        """Insert the choice: index over the tokens, rows of the stream ``[B, K]``, scores."""
        work, keep, pick = self.work, self.reused.keep, OPS["select"].overload
        front, count, changed = self.reused.stack.protected, self.count, self.reused.rewrite.changed
        see = self.layouts["key"].apply

        def choose(scores: Tensor) -> Tensor:
            own = scores.narrow(1, front, count)
            return pick(own, torch.ones_like(own, dtype=torch.bool), keep)

        def lift(chosen: Tensor, scores: Tensor) -> Tensor:
            every = torch.arange(scores.shape[1], device=scores.device)
            every = every.unsqueeze(0).expand(scores.shape[0], -1)
            behind = scores.shape[1] - front - count
            ends = every.narrow(1, 0, front), every.narrow(1, front + count, behind)
            return torch.cat([ends[0], chosen + front, ends[1]], dim=1)

        key = self.layer.attention.key
        scores = work.splice(lambda now, before: changed(see(now), before), [key, then])
        index = work.splice(choose, [scores])
        rows = work.splice(lift, [index, scores])
        if len(self.lead) != 1:
            value = self.layer.blocks[0].input
            dims = {axis.root: dim for dim, axis in enumerate(work.axes[value])}
            sizes = [work.size(value, dims[axis.root]) for axis in self.lead]
            index = work.call(aten.reshape.default, index, [*sizes, keep])
        return index, rows, scores

    def _attend(
        self, key: fx.Node, mask: fx.Node | None, held: dict[str, fx.Node], rows: fx.Node
    ) -> None:
        """Let the few queries read all keys, and the reference's values with the few in them."""
        work, node = self.work, self.layer.attention.node
        short, layout = arguments_of(node), self.layouts["value"]

        def placed(few: Tensor, reference: Tensor, at: Tensor) -> Tensor:
            seen = layout.apply(few)
            index = at[:, None, :, None].expand(-1, seen.shape[1], -1, seen.shape[3])
            whole = reference.scatter(2, index, seen.float()).to(few.dtype)
            return layout.put(whole, few)

        def lines(given: Tensor, query: Tensor, keys: Tensor, at: Tensor) -> Tensor:
            shape = [*query.shape[:-2], keys.shape[-2], keys.shape[-2]]
            seen = self.layouts["query"].apply(given.expand(shape))
            index = at[:, None, :, None].expand(-1, seen.shape[1], -1, seen.shape[3])
            return self.layouts["query"].put(seen.gather(2, index), query)

        with work.graph.inserting_before(node):
            kept = held[self.layer.state("value")]
            new = {"key": key, "value": work.splice(placed, [short["value"], kept, rows])}
            if mask is not None:
                alike = mask.meta["val"].shape[-2] == 1
                asked = [mask, short["query"], key, rows]
                new["attn_mask"] = mask if alike else work.splice(lines, asked)
        names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        for name, value in new.items():
            at = names.index(name)
            if at < len(node.args):
                node.update_arg(at, value)
            else:
                node.update_kwarg(name, value)

    def _put_back(self, output: fx.Node, reference: fx.Node, rows: fx.Node) -> None:
        """Give readers of a block's output the reference's rows with the few in them."""
        work, whole, few = self.work, self.whole, self.few

        def put(short: Tensor, before: Tensor, at: Tensor) -> Tensor:
            seen = few.see(short)
            index = at.unsqueeze(-1).expand(-1, -1, seen.shape[-1])
            return whole.put(before.scatter(1, index, seen.float()).to(short.dtype), short)

        readers = list(output.users)
        with work.graph.inserting_before(output.next):
            full = work.splice(put, [output, reference, rows])
        work.axes[full] = work.axes[output]
        for reader in readers:
            reader.replace_input_with(output, full)
