"""Reading: what a method reads at a site, as values of the graph and as the taps made of them.

A layer before an earlier cut of the same stack had more rows than there are now: its taps are read
at the rows that are left, its attention stays what it was, over the keys it had then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from tokopt.ir.axis import Axis
from tokopt.ir.dims import describe
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import TokenStack
from tokopt.ir.places import Places
from tokopt.ir.plan import Stage
from tokopt.ir.sites import Site
from tokopt.passes.ahead import read_ahead
from tokopt.passes.block_tap import Blocks, read_blocks
from tokopt.passes.budget import row_count
from tokopt.passes.grouping import group_table, numbers_now
from tokopt.passes.methods.fold import rows_at
from tokopt.passes.methods.method import LayerTap, Method, Taps
from tokopt.passes.methods.order import ranking
from tokopt.passes.numbering import visual_numbers
from tokopt.passes.operands import Given, Operands
from tokopt.passes.picked import picked_mask
from tokopt.passes.stack_state import StackState
from tokopt.passes.stream_view import StreamView, stream_view
from tokopt.passes.taps import tap_recipe
from tokopt.passes.text_rows import real_rows
from tokopt.passes.tower_tap import read_tower
from tokopt.passes.workspace import Workspace, aten


@dataclass(frozen=True)
class Reading:
    """What a method reads at a site: the graph's values, and how they become its taps.

    ``build`` takes the values of ``operands``; beside the taps it returns which rows arrive
    anywhere, bool ``[B, N]``, or None where all do.  ``view`` shows the stream as ``[B, N, C]``.
    """

    operands: tuple[fx.Node, ...]
    build: Callable[[Given], tuple[Taps, Tensor | None]]
    view: StreamView


def read_site(
    work: Workspace,
    stack: TokenStack,
    site: Site,
    stage: Stage,
    method: Method,
    state: StackState,
    lead: tuple[Axis, ...],
    seed: int,
    kept: Mapping[str, fx.Node],
) -> Reading:
    """Return what a stage's method reads; values that are not in the graph yet are inserted.

    ``kept``: the inputs that hold what the method remembers, by its names.
    """
    operands, needs = Operands(), method.needs
    view, visual = stream_view(work, stack, site, state), state.visual
    value, mask = operands.slot(site.value), operands.maybe(state.mask)
    earlier, since = state.carried.get(stage.method, (None, 0))
    carried, passed = operands.maybe(earlier), operands.maybe(state.passed.get(stage.method))
    arriving = operands.maybe(_arriving(work, stack, site, state))
    groups = _groups(operands, stack, site, state)
    entry = _entry(work, operands, site, method, state, view)
    prompt = "text" in needs and state.mask is not None
    text = operands.maybe(_text(work, stack, site, state, lead) if prompt else None)
    places = _placed(work, operands, stack, site, state)
    tower = read_tower(work, operands, stack, site, state, state.feeders)
    memory = {name: operands.slot(node) for name, node in kept.items()}
    numbers = visual_numbers(operands, stack, state) if memory or method.ordered else None
    order = operands.maybe(_order(work, stack, site, stage, method))
    blocks = state.blocks.get(site.name, ())
    layers = _layers(work, operands, stack, range(since, site.depth), lead, state, blocks, view)
    sizes = operands.maybe(state.sizes)
    ahead = read_ahead(work, operands, stack, site, method, lead)
    read = state.picked.get(site.name, ())
    for node in read:
        work.hoist(node, site.value)
    by_number = operands.slots(read)

    def build(given: Given) -> tuple[Taps, Tensor | None]:
        hidden, candidates = view.see(value(given)), mask(given)
        if candidates is None:
            candidates = _span(stack, visual, hidden)
        known = arriving(given)
        if known is not None:  # rows that arrive nowhere (padding cropped off) are no choice
            known = known.repeat(hidden.shape[0] // known.shape[0], 1)
            candidates = candidates & known
        taps = Taps(
            layers=layers(given),
            layer_count=len(stack.stack.layers),
            candidates=candidates,
            hidden=hidden,
            carried=carried(given),
            relay=stack.relay,
            keep=stage.keep,
            count=visual,
            seed=seed,
            group=site.group,
            groups=groups(given, candidates),
            text=text(given),
            entry=entry(given),
            places=places(given, candidates),
            tower=tower(given, candidates),
            ahead=ahead(given),
            passed=passed(given),
            options=stage.options,
            sizes=_sizes(method, candidates, sizes(given)),
            numbers=None if numbers is None else numbers(given, candidates),
            state={name: slot(given) for name, slot in memory.items()},
            ranking=order(given),
            picked=picked_mask(by_number(given), candidates),
        )
        return taps, known

    return Reading(tuple(operands.nodes), build, view)


def _order(
    work: Workspace, stack: TokenStack, site: Site, stage: Stage, method: Method
) -> fx.Node | None:
    if not method.ordered:
        return None
    value = ranking(stage.options, row_count(stack), method.name)
    return None if value is None else work.constant(f"order_{site.name.replace(':', '_')}", value)


def origins(state: StackState) -> list[fx.Node]:
    """Return the node of the rows' origins as an operand, where rows have gone."""
    return [] if state.origin is None else [state.origin]


def token_rows(stack: TokenStack, rows: int, origin: Tensor | None = None) -> Tensor | None:
    """Return where the rows of the token axis were in the original axis; None: they all are."""
    front = stack.protected
    return None if origin is None else origin.narrow(1, front, rows) - front


def _groups(
    operands: Operands, stack: TokenStack, site: Site, state: StackState
) -> Callable[[Given, Tensor], Tensor | None]:
    """Return how to number each row's group among those there are, int64 ``[B, N]``.

    None where rows leave one by one, or with their neighbours.
    """
    origin = operands.maybe(state.origin if site.scattered else None)
    front, rows = stack.protected, state.visual

    def groups(given: Given, candidates: Tensor) -> Tensor | None:
        if not site.scattered:
            return None
        inside = candidates.narrow(1, front, rows)
        now = numbers_now(group_table(site, inside, token_rows(stack, rows, origin(given))))
        return torch.nn.functional.pad(now, (front, candidates.shape[1] - front - rows))

    return groups


def _entry(
    work: Workspace,
    operands: Operands,
    site: Site,
    method: Method,
    state: StackState,
    view: StreamView,
) -> Callable[[Given], Tensor | None]:
    """Return how to see the rows there are now as they entered the stack, ``[B, N, C]``."""
    wanted = state.entry if "entry" in method.needs else None
    gone = _rows_left(work, state, 0) if wanted is not None else None
    if gone is not None and view.rows is not None:
        raise UnsupportedError(
            f"{method.name} reads the rows that entered the stack, which lie flat there",
            where=describe(site.value),
            hint="place its first stage in front of other stages",
        )
    entered, left = operands.maybe(wanted), operands.maybe(gone)

    def entry(given: Given) -> Tensor | None:
        value, rows = entered(given), left(given)
        if value is None or rows is None:
            return None if value is None else view.see(value)
        return rows_at(view.see(value), rows)

    return entry


def _layers(
    work: Workspace,
    operands: Operands,
    stack: TokenStack,
    depths: range,
    lead: tuple[Axis, ...],
    state: StackState,
    blocks: Blocks,
    view: StreamView,
) -> Callable[[Given], list[LayerTap]]:
    """Return how to make the taps of the layers at some depths."""
    layers = [layer for layer in stack.stack.layers if layer.depth in depths]
    found = (tap_recipe(layer, work.facts.dims, lead) for layer in layers)
    recipes = [recipe for recipe in found if recipe is not None]
    gone = [_rows_left(work, state, recipe.depth) for recipe in recipes]
    left = [operands.maybe(rows) for rows in gone]
    values = [operands.slots(recipe.nodes) for recipe in recipes]
    added = [
        read_blocks(operands, blocks[recipe.depth] if blocks else (), rows, view)
        for recipe, rows in zip(recipes, gone, strict=True)
    ]

    def build(given: Given) -> list[LayerTap]:
        made = zip(recipes, values, left, added, strict=True)
        return [
            replace(recipe.build(value(given), rows(given)), blocks=inside(given))
            for recipe, value, rows, inside in made
        ]

    return build


def _arriving(work: Workspace, stack: TokenStack, site: Site, state: StackState) -> fx.Node | None:
    """Insert which rows of a tower's items arrive anywhere, bool ``[items, N]``; None: all do."""
    reach = state.reach.get(site.name)
    if reach is None:
        return None
    tokens = reach[:, site.groups()]
    whole = torch.ones(len(tokens), int(stack.rows.root.length), dtype=torch.bool)
    whole[:, stack.protected : stack.protected + tokens.shape[1]] = tokens
    arriving = work.constant(f"arriving_{site.name.replace(':', '_')}", whole)
    if state.origin is None:
        return arriving

    def now(table: Tensor, origin: Tensor) -> Tensor:
        return table.repeat(origin.shape[0] // table.shape[0], 1).gather(1, origin)

    return work.splice(now, [arriving, state.origin])


def _text(
    work: Workspace, stack: TokenStack, site: Site, state: StackState, lead: tuple[Axis, ...]
) -> fx.Node:
    """Insert which rows are text and no padding, bool ``[B, N]``."""
    real, left = real_rows(work, stack, site, lead), _rows_left(work, state, 0)

    def text(mask: Tensor, *given: Tensor) -> Tensor:
        if not given:
            return ~mask
        own = given[0].expand(mask.shape[0], given[0].shape[1])
        return ~mask & (own if left is None else own.gather(1, given[1]))

    assert state.mask is not None
    operands = [real, *([] if left is None else [left])] if real is not None else []
    return work.splice(text, [state.mask, *operands])


def _placed(
    work: Workspace, operands: Operands, stack: TokenStack, site: Site, state: StackState
) -> Callable[[Given, Tensor], Places | None]:
    """Return how to find the places of the rows there are now, -1 at those that may not go."""
    found = state.places.get(site.name)
    if found is None:
        return lambda given, candidates: None
    whole = found
    table = operands.slot(work.constant(f"places_{site.name.replace(':', '_')}", whole.table))
    numbers = visual_numbers(operands, stack, state)

    def places(given: Given, candidates: Tensor) -> Places:
        rows = table(given)
        shown = rows[numbers(given, candidates).clamp(0, len(rows) - 1)]
        return whole.seen(torch.where(candidates.unsqueeze(-1), shown, -1))

    return places


def _sizes(method: Method, candidates: Tensor, now: Tensor | None) -> Tensor | None:
    """Return how many rows each row stands for: one, until rows were merged."""
    if method.weigh is None:
        return None
    return torch.ones(candidates.shape, device=candidates.device) if now is None else now


def _rows_left(work: Workspace, state: StackState, depth: int) -> fx.Node | None:
    """Insert the rows of a layer that later cuts left, int64 ``[B, K]``; None where all are."""
    left: fx.Node | None = None
    for entered, rows in state.cuts:
        if entered > depth:
            left = rows if left is None else work.call(aten.gather.default, left, 1, rows)
    return left


def _span(stack: TokenStack, visual: int, hidden: Tensor) -> Tensor:
    """Return the candidates of a stack whose visual rows lie together behind learned rows."""
    rows = torch.arange(hidden.shape[1], device=hidden.device)
    span = (rows >= stack.protected) & (rows < stack.protected + visual)
    return span.unsqueeze(0).expand(hidden.shape[0], hidden.shape[1])
