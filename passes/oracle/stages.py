"""Stages: at each site of a plan, score the rows alive, choose, and mark the others dead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from tokopt.ir.dims import Dims
from tokopt.ir.errors import InputError, InternalError, UnsupportedError
from tokopt.passes.methods.method import Taps
from tokopt.passes.oracle.choose import choose_rows, over_groups
from tokopt.passes.oracle.placed import Choice, PlacedStage
from tokopt.passes.oracle.rows import StreamRows, stream_rows
from tokopt.passes.oracle.sizes import Sizes
from tokopt.passes.oracle.taps import TapReader
from tokopt.passes.oracle.visual import visual_rows


class Stages:
    """The stages of a plan during one run of the interpreter.

    ``visits`` and ``watched`` are what the interpreter is to call and to keep; ``seen`` (set before
    the run) is where it keeps it; ``choices`` holds what was found, in plan order.
    """

    def __init__(
        self,
        placed: Sequence[PlacedStage],
        dims: Dims,
        sizes: Sizes,
        seed: int,
        forced: Sequence[Tensor] | None,
        reach: Mapping[str, Tensor | None],
    ) -> None:
        if forced is not None and len(forced) != len(placed):
            raise InputError(f"{len(forced)} forced choices for {len(placed)} stages")
        self.placed, self.dims, self.sizes = placed, dims, sizes
        self.seed, self.forced, self.reach = seed, forced, reach
        self.seen: Mapping[fx.Node, Any] = {}
        self.choices: dict[int, Choice] = {}
        nodes = {p.site.value for p in placed}
        self.visits: dict[fx.Node, Callable[[Tensor], Tensor]] = {
            node: partial(self._visit, node) for node in nodes
        }
        self.watched: set[fx.Node] = set().union(*(p.watched() for p in placed))

    def _visit(self, node: fx.Node, value: Tensor) -> Tensor:
        for index, placed in enumerate(self.placed):
            if placed.site.value is node:
                value = self._run(index, placed, value)
        return value

    def _run(self, index: int, placed: PlacedStage, value: Tensor) -> Tensor:
        """Run one stage on its site's value; return it with the dropped rows marked."""
        site = placed.site
        rows = stream_rows(self.dims, site.value, site.dim, site.tokens, self.sizes)
        if rows.group != site.group:
            raise InternalError(f"{site.name} has groups of {rows.group}, not {site.group}")
        items = rows.items(value)
        shape = (items.shape[0], items.shape[1])
        visual = visual_rows(placed.stack, rows, shape, self.dims, self.seen, self.sizes)
        visual = visual.to(items.device)
        alive = self._alive(placed, items, visual)
        candidates = alive & visual
        if placed.stack.merge is not None:  # the next token comes from the last row
            candidates[:, -1] = False
        fixed = (alive & visual & ~candidates).sum(1)
        quota = tuple((placed.stage.keep - fixed).tolist())
        lost = self._lost(placed, rows, shape)
        raw = self._score(placed, rows, items, candidates & ~lost, alive)
        raw = raw.masked_fill(lost & alive, -torch.inf)
        scores = over_groups(raw, rows).masked_fill(~alive, torch.nan)
        if self.forced is None:
            stay = choose_rows(scores, candidates, rows, quota)
        else:
            stay = self.forced[index].to(alive.device)
            if tuple(stay.shape) != shape or stay.dtype != torch.bool:
                raise InputError(f"forced choice {index}: {tuple(stay.shape)}", expected=f"{shape}")
        after = alive & stay
        self.choices[index] = Choice(
            placed.stage, rows.first, rows.group, after, candidates, scores, raw, quota
        )
        return rows.bury(value, ~after)

    def _lost(self, placed: PlacedStage, rows: StreamRows, shape: tuple[int, int]) -> Tensor:
        """Return which rows ``[B, N]`` arrive nowhere, whatever is chosen: they go first."""
        lost, reach = torch.zeros(shape, dtype=torch.bool), self.reach.get(placed.site.name)
        if reach is not None:
            units = lost[:, rows.first : rows.first + rows.count].unflatten(1, (-1, rows.group))
            units |= ~reach.repeat(shape[0] // len(reach), 1).unsqueeze(-1)
        return lost

    def _alive(self, placed: PlacedStage, items: Tensor, visual: Tensor) -> Tensor:
        """Return which rows are left when a stage begins; check that the marks make sense."""
        nan, name = items.isnan(), placed.site.name
        alive = ~nan.all(-1)
        counts = alive.sum(1)
        if bool((nan.any(-1) == alive).any()):
            raise InternalError(f"at {name} some features of a row are dropped, and others not")
        if bool((~alive & ~visual).any()):
            raise InternalError(f"at {name} a text or learned row is marked as dropped")
        if placed.before is not None and not torch.equal(alive, self.choices[placed.before].alive):
            raise InternalError(f"the rows at {name} are not those the stage before left")
        if bool((counts != counts[0]).any()):
            raise UnsupportedError(
                f"batch items have different numbers of rows left at {name}",
                expected="images of one size per item, or a batch of one",
            )
        return alive

    def _score(
        self,
        placed: PlacedStage,
        rows: StreamRows,
        items: Tensor,
        candidates: Tensor,
        alive: Tensor,
    ) -> Tensor:
        """Return the method's score at full length, NaN at dead rows."""
        left = alive.nonzero()[:, 1].view(len(alive), -1)
        reader = TapReader(self.dims, self.seen, rows.lead, left)
        same = placed.same
        taps = Taps(
            layers=[reader.layer(layer, attention) for layer, attention in placed.layers],
            layer_count=len(placed.stack.stack.layers),
            candidates=candidates.gather(1, left),
            hidden=items.gather(1, left[..., None].expand(-1, -1, items.shape[-1])),
            carried=None if same is None else self.choices[same].raw.gather(1, left),
            relay=placed.stack.relay,
            keep=placed.stage.keep,
            seed=self.seed,
            group=placed.site.group,
            options=placed.stage.options,
        )
        try:
            score = placed.method.score(taps)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise InternalError(f"the score of {placed.method.name} failed: {error}") from error
        if score.shape != left.shape:
            raise InternalError(
                f"{placed.method.name} gave a score of shape {tuple(score.shape)}",
                expected=f"one number per row, {tuple(left.shape)}",
            )
        empty = torch.full(alive.shape, torch.nan, device=score.device)
        return empty.scatter(1, left, score.float())
