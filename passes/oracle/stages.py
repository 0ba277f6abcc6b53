"""Stages: at each site of a plan, score the rows alive, choose, and mark the others dead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from tokopt.ir.dims import Dims
from tokopt.ir.errors import InputError, InternalError, UnsupportedError
from tokopt.ir.layers import Layer
from tokopt.ir.places import Places
from tokopt.ir.sites import Site
from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.order import ranking
from tokopt.passes.oracle.away import Away, came_back
from tokopt.passes.oracle.choose import choose_among, groups_of, over_groups
from tokopt.passes.oracle.made import combined, weighed
from tokopt.passes.oracle.placed import Choice, PlacedStage, Pool
from tokopt.passes.oracle.rows import StreamRows, stream_rows
from tokopt.passes.oracle.sizes import Sizes
from tokopt.passes.oracle.standing import Standing
from tokopt.passes.oracle.taps import TapReader, watched
from tokopt.passes.oracle.tower import tower_tap
from tokopt.passes.oracle.visual import visual_rows


class Stages:
    """The stages of a plan during one run of the interpreter.

    ``visits`` and ``watched`` are what the interpreter is to call and to keep; ``seen`` (set before
    the run) is where it keeps it, and ``peek`` how it looks ahead; ``choices`` holds
    what was found, in plan order.
    """

    def __init__(
        self,
        placed: Sequence[PlacedStage],
        dims: Dims,
        sizes: Sizes,
        seed: int,
        forced: Sequence[Tensor] | None,
        tie: float,
        reach: Mapping[str, Tensor | None],
        original: Mapping[fx.Node, Any],
        places: Mapping[str, Places],
        state: Mapping[str, Tensor],
    ) -> None:
        if forced is not None and len(forced) != len(placed):
            raise InputError(f"{len(forced)} forced choices for {len(placed)} stages")
        self.placed, self.dims, self.sizes = placed, dims, sizes
        self.seed, self.forced, self.tie, self.reach = seed, forced, tie, reach
        self.original, self.places = original, places
        self.state: Mapping[str, Tensor] = state
        self.kept: dict[str, Tensor] = {}
        self.seen: Mapping[fx.Node, Any] = {}
        self.peek: Callable[[set[fx.Node], fx.Node, Tensor], Mapping[fx.Node, Any]]
        self.choices: dict[int, Choice] = {}
        self.standing = Standing(placed, dims)
        self.away: dict[int, Away] = {}
        nodes = {p.site.value for p in placed} | {p.end.value for p in placed if p.end}
        self.visits: dict[fx.Node, Callable[[Tensor], Tensor]] = {
            node: partial(self._visit, node) for node in nodes
        }
        self.watched: set[fx.Node] = set().union(*(p.watched() for p in placed))

    def _visit(self, node: fx.Node, value: Tensor) -> Tensor:
        for index, placed in enumerate(self.placed):
            if placed.site.value is node:
                value = self._run(index, placed, value)
            if placed.end is not None and placed.end.value is node:
                value = self._back(index, placed.end, value)
        return value

    def _back(self, index: int, end: Site, value: Tensor) -> Tensor:
        """Return the value at a later site with the rows back that a stage sent away."""
        rows = stream_rows(self.dims, end.value, end.dim, end.tokens, self.sizes)
        return rows.replaced(value, came_back(self.away[index], rows.items(value)))

    def _run(self, index: int, placed: PlacedStage, value: Tensor) -> Tensor:
        """Run one stage on its site's value; return it with the dropped rows marked."""
        site = placed.site
        rows = stream_rows(self.dims, site.value, site.dim, site.tokens, self.sizes)
        if rows.group != site.run:
            raise InternalError(f"{site.name} has groups of {rows.group}, not {site.run}")
        table = self._table(placed, rows)
        items = rows.items(value)
        shape = (items.shape[0], items.shape[1])
        visual = visual_rows(placed.stack, rows, shape, self.dims, self.seen, self.sizes)
        visual = visual.to(items.device)
        alive = self._alive(placed, items, visual)
        candidates = alive & visual
        if placed.stack.merge is not None:  # the next token comes from the last row
            candidates[:, -1] = False
        pools = _pools(placed, visual, alive, candidates)
        lost = self._lost(placed, table, shape)
        left = alive.nonzero()[:, 1].view(len(alive), -1)
        count = int((alive & visual).sum(1)[0])
        taps = self._taps(placed, rows, items, candidates & ~lost, alive, left, table, count)
        if placed.ahead is not None:
            layer, attention = placed.ahead
            seen = {**self.seen, **self.peek(watched(attention), site.value, value)}
            reader = TapReader(self.dims, seen, rows.lead, left)
            taps = replace(taps, ahead=reader.layer(layer, attention))
        if placed.remembers or placed.method.ordered:
            held = {n: self.state[key] for key, n in placed.remembers.items() if key in self.state}
            numbers = (visual.long().cumsum(1) - 1).gather(1, left)
            taps = replace(taps, state=held, numbers=numbers)
        if placed.method.ordered:
            count = int(visual[0].sum())
            order = ranking(placed.stage.options, count, placed.method.name)
            taps = replace(taps, ranking=order)
        where = self.places.get(site.name)
        if where is not None:
            taps = replace(taps, places=_placed(where, visual, taps.candidates, left))
        if placed.feeder is not None:
            tower = tower_tap(placed.feeder, self.dims, self.seen, visual, taps.candidates, left)
            taps = replace(taps, tower=tower)
        stay = None if self.forced is None else self._forced(index, alive)
        if stay is not None and self.tie:
            taps = replace(taps, followed=stay.gather(1, left), tie=self.tie)
        if placed.same is not None:
            known = self.choices[placed.same].passed
            taps = replace(taps, passed=None if known is None else known.gather(1, left))
        raw = self._score(placed.method, taps, alive, left)
        passed = None
        if placed.method.passes_on is not None:
            given = placed.method.passes_on(taps).float()
            passed = torch.full(alive.shape, torch.nan).scatter(1, left, given)
        raw = raw.masked_fill(lost & alive, -torch.inf)
        scores = over_groups(raw, table).masked_fill(~alive, torch.nan)
        after = alive & (choose_among(scores, pools, table) if stay is None else stay)
        found = (table, after, candidates, scores, raw, pools, passed)
        self.choices[index] = Choice(placed.stage, *found)
        if placed.method.combine is not None:
            value = rows.replaced(value, combined(placed.method, taps, items, left, after))
        if placed.end is not None:
            self.away[index] = Away.of(items, after, candidates & ~lost, raw)
            value = rows.replaced(value, self.away[index].entered)
        if placed.method.weigh is not None:
            sizes = weighed(placed.method, taps, left, after)
            self.standing.put(placed.stack.role, sizes, rows.lead)
        if placed.method.remember is not None:
            stay = after.gather(1, left).nonzero()[:, 1].view(len(after), -1)
            kept = placed.method.remember(taps, stay)
            self.kept.update({key: kept[name] for key, name in placed.remembers.items()})
        return rows.bury(value, ~after)

    def _forced(self, index: int, alive: Tensor) -> Tensor:
        """Return the rows that were chosen for a stage; ``InputError`` where they cannot be."""
        assert self.forced is not None
        stay, shape = self.forced[index].to(alive.device), tuple(alive.shape)
        if tuple(stay.shape) != shape or stay.dtype != torch.bool:
            raise InputError(f"forced choice {index}: {tuple(stay.shape)}", expected=f"{shape}")
        return stay

    def _table(self, placed: PlacedStage, rows: StreamRows) -> Tensor:
        """Return the rows of each group, ``[groups, rows per group]``."""
        site = placed.site
        lengths = [self.sizes.number(axis.length) for axis in site.grid]
        return groups_of(lengths, [axis not in site.unit for axis in site.grid], rows.first)

    def _lost(self, placed: PlacedStage, table: Tensor, shape: tuple[int, int]) -> Tensor:
        """Return which rows ``[B, N]`` arrive nowhere, whatever is chosen: they go first."""
        lost, reach = torch.zeros(shape, dtype=torch.bool), self.reach.get(placed.site.name)
        if reach is not None:
            lost[:, table] = ~reach.repeat(shape[0] // len(reach), 1).unsqueeze(-1).expand(
                -1, -1, table.shape[1]
            )
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

    def _taps(
        self,
        placed: PlacedStage,
        rows: StreamRows,
        items: Tensor,
        candidates: Tensor,
        alive: Tensor,
        left: Tensor,
        table: Tensor,
        visual: int,
    ) -> Taps:
        """Return what the method reads: rows ``left`` ``[B, K]``, ``visual`` of them visual."""
        reader = TapReader(self.dims, self.seen, rows.lead, left, self.standing.weights)
        same, text = placed.same, None
        if placed.padding:
            first = placed.stack.stack.layers[0].attention[0]
            every = torch.arange(alive.shape[1]).expand(alive.shape)
            real = TapReader(self.dims, self.original, rows.lead, every).reads_itself(first)
            text = (real & ~candidates).gather(1, left)
        entry = None
        if "entry" in placed.method.needs:
            entered = rows.items(self.seen[placed.stack.sites[0].value])
            entry = entered.gather(1, left[..., None].expand(-1, -1, entered.shape[-1]))
        sizes = self.standing.of(placed.stack.role)
        if sizes is None:
            sizes = torch.ones(alive.shape)
        return Taps(
            layers=[
                replace(
                    reader.layer(layer, attention), blocks=self._blocks(placed, layer, rows, left)
                )
                for layer, attention in placed.layers
            ],
            layer_count=len(placed.stack.stack.layers),
            candidates=candidates.gather(1, left),
            hidden=items.gather(1, left[..., None].expand(-1, -1, items.shape[-1])),
            carried=None if same is None else self.choices[same].raw.gather(1, left),
            relay=placed.stack.relay,
            keep=placed.stage.keep,
            count=visual,
            seed=self.seed,
            group=placed.site.group,
            groups=_numbers(table, alive, left) if placed.site.scattered else None,
            text=text,
            entry=entry,
            options=placed.stage.options,
            sizes=sizes.gather(1, left) if placed.method.weigh is not None else None,
            picked=self._picked(placed, left),
        )

    def _picked(self, placed: PlacedStage, left: Tensor) -> Tensor | None:
        """Return which of the rows left the program reads by number."""
        if not placed.picked:
            return None
        found = torch.zeros(left.shape, dtype=torch.bool)
        for node in placed.picked:
            for item, number in enumerate(self.original[node].expand(len(left)).tolist()):
                found[item] |= left[item] == number
        return found

    def _blocks(
        self, placed: PlacedStage, layer: Layer, rows: StreamRows, left: Tensor
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return what a layer's sub-blocks read and add, at the rows that are left."""

        def at(node: fx.Node) -> Tensor:
            whole = rows.items(self.seen[node])
            return torch.stack([own[there] for own, there in zip(whole, left, strict=True)])

        return tuple((at(b.input), at(b.output)) for b in placed.blocks.get(layer.depth, ()))

    def _score(self, method: Method, taps: Taps, alive: Tensor, left: Tensor) -> Tensor:
        """Return the method's score at full length, NaN at dead rows."""
        try:
            score = method.score(taps)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise InternalError(f"the score of {method.name} failed: {error}") from error
        if score.shape != left.shape:
            raise InternalError(
                f"{method.name} gave a score of shape {tuple(score.shape)}",
                expected=f"one number per row, {tuple(left.shape)}",
            )
        empty = torch.full(alive.shape, torch.nan, device=score.device)
        return empty.scatter(1, left, score.float())


def _pools(
    placed: PlacedStage, visual: Tensor, alive: Tensor, candidates: Tensor
) -> tuple[tuple[Pool, ...], ...]:
    """Return, per item, the candidates that compete and how many stay.

    Visual rows that may not go count among those that stay of their image.
    """
    count, keep = placed.sharing or 1, placed.stage.keep
    found = []
    for item, written in enumerate(visual):
        images = written.nonzero().flatten().chunk(count)
        pools = []
        for number, rows in enumerate(images):
            own = torch.zeros_like(written).index_fill(0, rows, True)
            fixed = int((own & alive[item] & ~candidates[item]).sum())
            share = len(range(number, keep, count))
            pools.append(Pool(own & candidates[item], share - fixed))
        found.append(tuple(pools))
    return tuple(found)


def _placed(places: Places, visual: Tensor, candidates: Tensor, left: Tensor) -> Places:
    """Return the places of rows ``left``, an item at a time; -1 at those that may not go."""
    table = torch.full((*left.shape, 3), -1)
    for item, rows in enumerate(left.tolist()):
        numbers = {row: n for n, row in enumerate(visual[item].nonzero()[:, 0].tolist())}
        for at, row in enumerate(rows):
            if bool(candidates[item, at]):
                table[item, at] = places.table[numbers[row]]
    return places.seen(table)


def _numbers(table: Tensor, alive: Tensor, left: Tensor) -> Tensor:
    """Return the number of each alive row's group among those of its item, ``[B, K]``."""
    numbers = torch.zeros_like(left)
    for item, rows in enumerate(left.tolist()):
        groups = [g for g in table.tolist() if bool(alive[item, g].all())]
        found = {row: number for number, group in enumerate(groups) for row in group}
        numbers[item] = torch.tensor([found.get(row, 0) for row in rows])
    return numbers
