"""Reusing: what layers that compute few rows anew must give, on the original at full length.

Told apart from the rewriter's way: every operator runs on all rows.  Around the attention the
values of the other rows are the reference's, and behind each block its rows of them are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tokopt.ir.binding import bind
from tokopt.ir.dims import Dims
from tokopt.ir.facts import Facts
from tokopt.ir.layout import layout_of
from tokopt.ir.plan import Plan, Stage
from tokopt.ir.precision import with_full_inputs
from tokopt.passes.oracle.choose import choose
from tokopt.passes.oracle.interpreter import Around, Call, MaskedInterpreter
from tokopt.passes.oracle.placed import Choice, Pool
from tokopt.passes.oracle.rows import StreamRows, stream_rows
from tokopt.passes.oracle.sizes import Sizes
from tokopt.passes.reused import AGE, Reused, ReusedLayer, reused_of


def states_of(reused: Reused | None) -> set[str]:
    """Return the names of the inputs that hold what layers remember."""
    if reused is None:
        return set()
    names = ("key", "value")
    own = {name for one in reused.layers for name in (*map(one.state, names), *one.added)}
    return {AGE, *own}


def reference_values(facts: Facts, plan: Plan, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a reference call keeps, by input: values of the original's own run, fp32.

    Raises ``InputError`` for inputs that do not fit.
    """
    reused, exported = reused_of(facts, plan), facts.exported
    assert reused is not None
    sides = [one for layer in reused.layers for one in (layer.attention.key, layer.attention.value)]
    sums = [block.output for layer in reused.layers for block in layer.blocks]
    given = {name: inputs[name] for name in exported.graph_signature.user_inputs}
    values = with_full_inputs(exported, bind(exported, given))
    run = MaskedInterpreter(facts, {}, {*sides, *sums})
    run.execute(values)
    sizes, stack = Sizes(exported, values), reused.stack
    found = {AGE: torch.full((1,), float(1 % reused.every))}
    for layer in reused.layers:
        entry = layer.blocks[0].input
        rows = stream_rows(facts.dims, entry, stack.stack.dim, stack.tokens, sizes)
        for name, node in (("key", layer.attention.key), ("value", layer.attention.value)):
            layout = layout_of(node, facts.dims, rows.lead, -2, -1)
            found[layer.state(name)] = layout.apply(run.seen[node])
        for name, block in zip(layer.added, layer.blocks, strict=True):
            found[name] = rows.items(run.seen[block.output])
    return found


class Reusing:
    """Rows reused during one run of the interpreter.

    ``around`` says how calls are made, ``watched`` what the interpreter is to keep, ``seen`` (set
    before the run) where.  ``state``: what the reference gave, by input.  ``forced``: per layer the
    rows to compute anew, bool ``[B, N]``.  ``choices`` are there after the run.
    """

    def __init__(
        self,
        reused: Reused,
        dims: Dims,
        sizes: Sizes,
        state: Mapping[str, Tensor],
        forced: Sequence[Tensor] | None,
    ) -> None:
        self.reused, self.dims, self.sizes, self.state = reused, dims, sizes, state
        self.forced = forced
        self.seen: Mapping[fx.Node, Any] = {}
        self.anew: dict[int, Choice] = {}
        self.around: dict[fx.Node, Around] = {}
        self.watched: set[fx.Node] = set()
        for number, layer in enumerate(reused.layers):
            self.watched.add(layer.attention.key)
            self.around[layer.attention.node] = self._attending(number, layer)
            for name, block in zip(layer.added, layer.blocks, strict=True):
                self.around[block.output] = self._adding(number, block.output, name)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Per layer the rows that were computed anew, among all."""
        return tuple(self.anew[number] for number in range(len(self.reused.layers)))

    @property
    def remembered(self) -> dict[str, Tensor]:
        """The counter, one further; what the reference gave stays."""
        return {f"{AGE}_next": (self.state[AGE] + 1) % self.reused.every}

    def _rows(self, node: fx.Node) -> StreamRows:
        stack = self.reused.stack
        return stream_rows(self.dims, node, stack.stack.dim, stack.tokens, self.sizes)

    def _choose(self, number: int, layer: ReusedLayer) -> None:
        rows, reused = self._rows(layer.blocks[0].input), self.reused
        key = layer.attention.key
        now = layout_of(key, self.dims, rows.lead, -2, -1).apply(self.seen[key])
        scores = reused.rewrite.changed(now, self.state[layer.state("key")])
        count = scores.shape[1]
        tokens = torch.zeros(count, dtype=torch.bool)
        tokens[rows.first : rows.first + rows.count] = True
        candidates = tokens.expand(scores.shape)
        keep = reused.keep
        pools = tuple((Pool(tokens, keep),) for _ in scores)
        if self.forced is None:
            anew = choose(scores, candidates, [keep] * len(scores))
        else:
            anew = self.forced[number].to(scores.device)
        stage = Stage(f"{reused.stack.role}:{layer.depth}", reused.rewrite.name, keep)
        table = torch.arange(count).unsqueeze(1)
        self.anew[number] = Choice(stage, table, anew, candidates, scores, scores, pools)

    def _attending(self, number: int, layer: ReusedLayer) -> Around:
        value = layer.attention.value

        def around(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._choose(number, layer)
            lead = self._rows(layer.blocks[0].input).lead
            layout = layout_of(value, self.dims, lead, -2, -1)
            given = kwargs["value"] if "value" in kwargs else args[2]
            mixed = given.clone(memory_format=torch.contiguous_format)
            flat = mixed.view(-1)
            entries = layout.apply(torch.arange(mixed.numel()).reshape(mixed.shape))
            reference = self.state[layer.state("value")]
            for item, anew in enumerate(self.anew[number].alive):
                for row in (~anew).nonzero().flatten().tolist():
                    flat[entries[item, :, row]] = reference[item, :, row]
            if "value" in kwargs:
                return call(args, {**kwargs, "value": mixed})
            return call((*args[:2], mixed, *args[3:]), kwargs)

        return around

    def _adding(self, number: int, node: fx.Node, name: str) -> Around:
        def around(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = call(args, kwargs)
            rows = self._rows(node)
            items = rows.items(value).clone()
            for item, anew in enumerate(self.anew[number].alive):
                items[item, ~anew] = self.state[name][item, ~anew]
            return rows.replaced(value, items)

        return around
