"""Reading: what a method reads at a site, as values of the graph and as the taps made of them.

A layer before an earlier cut of the same stack had more rows than there are now: its taps are read
at the rows that are left, its attention stays what it was, over the keys it had then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from tokopt.ir.axis import Axis, locate
from tokopt.ir.dims import describe
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import TokenStack
from tokopt.ir.lengths import is_one
from tokopt.ir.places import Places
from tokopt.ir.plan import Stage
from tokopt.ir.sites import Site
from tokopt.passes.grouping import group_table, numbers_now
from tokopt.passes.methods.fold import rows_at
from tokopt.passes.methods.method import LayerTap, Method, Taps
from tokopt.passes.stack_state import StackState
from tokopt.passes.stream_view import StreamView
from tokopt.passes.taps import TapRecipe, tap_recipe
from tokopt.passes.text_rows import real_rows
from tokopt.passes.workspace import Workspace, aten


@dataclass(frozen=True)
class Reading:
    """What a method reads at a site: the graph's values, and how they become its taps.

    ``build`` takes the values of ``operands``; beside the taps it returns which rows arrive
    anywhere, bool ``[B, N]``, or None where all do.  ``view`` shows the stream as ``[B, N, C]``.
    """

    operands: tuple[fx.Node, ...]
    build: Callable[[Sequence[Tensor]], tuple[Taps, Tensor | None]]
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
) -> Reading:
    """Return what a stage's method reads; values that are not in the graph yet are inserted."""
    carried, since = state.carried.get(stage.method, (None, 0))
    recipes = _recipes(work, stack, range(since, site.depth), lead)
    view = _view(work, stack, site, state)
    operands: list[fx.Node] = [site.value]
    arriving = _arriving(work, stack, site, state)
    operands += [n for n in (state.mask, carried, arriving) if n is not None]
    operands += origins(state) if site.scattered else []
    entry = state.entry if "entry" in method.needs else None
    gone = _rows_left(work, state, 0) if entry is not None else None
    if gone is not None and view.rows is not None:
        raise UnsupportedError(
            f"{method.name} reads the rows that entered the stack, which lie flat there",
            where=describe(site.value),
            hint="place its first stage in front of other stages",
        )
    operands += [n for n in (entry, gone) if n is not None]
    text = None
    if "text" in method.needs and state.mask is not None:
        text = _text(work, stack, site, state, lead)
        operands.append(text)
    places = state.places.get(site.name)
    located: list[fx.Node] = []
    if places is not None:
        table = work.constant(f"places_{site.name.replace(':', '_')}", places.table)
        located = [table, *([state.written] if state.written else []), *origins(state)]
        operands += located
    left = [_rows_left(work, state, recipe.depth) for recipe in recipes]
    visual = state.visual
    for recipe, rows in zip(recipes, left, strict=True):
        operands += [*recipe.nodes, *([] if rows is None else [rows])]

    def build(tensors: Sequence[Tensor]) -> tuple[Taps, Tensor | None]:
        given = list(tensors)
        hidden = view.see(given.pop(0))
        candidates = given.pop(0) if state.mask is not None else _span(stack, state, hidden)
        earlier = given.pop(0) if carried is not None else None
        known = given.pop(0) if arriving is not None else None
        if known is not None:  # rows that arrive nowhere (padding cropped off) are no choice
            known = known.repeat(hidden.shape[0] // known.shape[0], 1)
            candidates = candidates & known
        groups = _groups(stack, site, candidates, given, state) if site.scattered else None
        entered = view.see(given.pop(0)) if entry is not None else None
        if entered is not None and gone is not None:
            entered = rows_at(entered, given.pop(0))
        prompt = given.pop(0) if text is not None else None
        where = None
        if places is not None:
            table, *numbers = [given.pop(0) for _ in located]
            where = _placed(places, table, stack.protected, candidates, numbers)
        layers: list[LayerTap] = []
        for recipe, rows in zip(recipes, left, strict=True):
            tap = [given.pop(0) for _ in recipe.nodes]
            layers.append(recipe.build(tap, None if rows is None else given.pop(0)))
        taps = Taps(
            layers=layers,
            layer_count=len(stack.stack.layers),
            candidates=candidates,
            hidden=hidden,
            carried=earlier,
            relay=stack.relay,
            keep=stage.keep,
            count=visual,
            seed=seed,
            group=site.group,
            groups=groups,
            text=prompt,
            entry=entered,
            places=where,
            options=stage.options,
        )
        return taps, known

    return Reading(tuple(operands), build, view)


def origins(state: StackState) -> list[fx.Node]:
    """Return the node of the rows' origins as an operand, where rows have gone."""
    return [] if state.origin is None else [state.origin]


def token_rows(stack: TokenStack, rows: int, origin: Tensor | None = None) -> Tensor | None:
    """Return where the rows of the token axis were in the original axis; None: they all are."""
    front = stack.protected
    return None if origin is None else origin.narrow(1, front, rows) - front


def _groups(
    stack: TokenStack, site: Site, candidates: Tensor, given: list[Tensor], state: StackState
) -> Tensor:
    """Return the number of each row's group among those there are, int64 ``[B, N]``."""
    origin = given.pop(0) if state.origin is not None else None
    front, rows = stack.protected, state.visual
    inside = candidates.narrow(1, front, rows)
    now = numbers_now(group_table(site, inside, token_rows(stack, rows, origin)))
    return torch.nn.functional.pad(now, (front, candidates.shape[1] - front - rows))


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
    places: Places, table: Tensor, front: int, candidates: Tensor, given: list[Tensor]
) -> Places:
    """Return the places of the rows there are now, ``[B, N]``, -1 at those that may not go.

    ``given``: the mask of visual rows as the merge wrote them (decoders), the rows' origins (where
    rows have gone); ``front`` learned rows stand before a tower's.
    """
    count = candidates.shape[1]
    number = torch.arange(count, device=table.device).unsqueeze(0) - front
    if given and given[0].dtype == torch.bool:
        number = given.pop(0).long().cumsum(1) - 1
        number = number.gather(1, given.pop(0)) if given else number
    elif given:
        number = given.pop(0) - front
    shown = table[number.clamp(0, len(table) - 1)]
    return places.seen(torch.where(candidates.unsqueeze(-1), shown, -1))


def _recipes(
    work: Workspace, stack: TokenStack, depths: range, lead: tuple[Axis, ...]
) -> list[TapRecipe]:
    layers = [layer for layer in stack.stack.layers if layer.depth in depths]
    found = (tap_recipe(layer, work.facts.dims, lead) for layer in layers)
    return [recipe for recipe in found if recipe is not None]


def _rows_left(work: Workspace, state: StackState, depth: int) -> fx.Node | None:
    """Insert the rows of a layer that later cuts left, int64 ``[B, K]``; None where all are."""
    left: fx.Node | None = None
    for entered, rows in state.cuts:
        if entered > depth:
            left = rows if left is None else work.call(aten.gather.default, left, 1, rows)
    return left


def _view(work: Workspace, stack: TokenStack, site: Site, state: StackState) -> StreamView:
    """Return how to see the stream at a site as ``[B, N, C]``, and back."""
    axes = work.axes[site.value]
    features = max(d for d in range(len(axes)) if d != site.dim)
    rows = None
    place = locate(axes[site.dim], site.tokens)
    for kind, children, index in place.path if place is not None else ():
        if kind == "*" and any(not is_one(child.root.length) for child in children[:index]):
            rows = stack.protected + state.visual  # flattened: items and rows share a dim
    return StreamView(site.dim, features, rows)


def _span(stack: TokenStack, state: StackState, hidden: Tensor) -> Tensor:
    """Return the candidates of a stack whose visual rows lie together behind learned rows."""
    rows = torch.arange(hidden.shape[1], device=hidden.device)
    span = (rows >= stack.protected) & (rows < stack.protected + state.visual)
    return span.unsqueeze(0).expand(hidden.shape[0], hidden.shape[1])
