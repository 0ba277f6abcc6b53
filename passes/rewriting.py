"""Rewriting: put another attention in the place of a layer's own, for some of its rows.

The layer's own stays in the graph: rows that are not asked about keep it bit for bit, and it is
what stages and rewrites read.  Written out: the new weights take the old ones' rows behind the
softmax.  Fused: the new weights times the values take the result's rows; where the new weights are
the old ones scaled, what is read is summed up by the fused operator itself (``scaling.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from tokopt.ir.dims import describe
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.layers import Layer
from tokopt.ir.layout import layout_of, lead_axes
from tokopt.ir.plan import Attending, Plan
from tokopt.ir.sites import Site
from tokopt.passes.ask_again import ask_again
from tokopt.passes.operands import Operands
from tokopt.passes.rewrites.attended import Attended, Marking
from tokopt.passes.rewrites.registry import find_rewrite
from tokopt.passes.rewrites.rewrite import Rewrite, last_rows, rows_behind
from tokopt.passes.stack_state import StackState
from tokopt.passes.stream_view import stream_view
from tokopt.passes.taps import tap_recipe
from tokopt.passes.tower_tap import Feeder, feeder_of, read_tower, refuse_shortened
from tokopt.passes.workspace import Workspace


@dataclass(frozen=True)
class Asked:
    """One entry of a plan in one graph: from ``site`` on; ``options`` are all there are."""

    rewrite: Rewrite
    stack: TokenStack
    site: Site
    options: Mapping[str, int | float | str]
    feeder: Feeder | None

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers whose attention changes: all behind the site that attend to all rows."""
        layers = self.stack.stack.layers[self.site.depth :]
        return [layer for layer in layers if not layer.windowed]


def asked_rewrites(facts: Facts, plan: Plan) -> list[Asked]:
    """Return a plan's rewrites of attention; refuse what cannot be."""
    rewrites = ((entry, find_rewrite(entry.method)) for entry in plan.attention)
    return [_asked(facts, plan, e, found) for e, found in rewrites if isinstance(found, Rewrite)]


def _asked(facts: Facts, plan: Plan, entry: Attending, rewrite: Rewrite) -> Asked:
    stack, site = facts.find_site(entry.site)
    options = rewrite.settings(entry.options)
    kind = stack.role.rstrip("0123456789")
    if kind not in rewrite.roles or stack.merge is None:
        raise UnsupportedError(
            f"{rewrite.name} cannot rewrite the attention of {stack.role}",
            expected="a decoder whose sequence the image is written into",
        )
    if sum(facts.find_site(other.site)[0] is stack for other in plan.attention) > 1:
        raise InputError(f"the attention of {stack.role} is rewritten twice")
    feeder = feeder_of(facts, stack, rewrite.name) if "tower" in rewrite.needs else None
    if feeder is not None:
        refuse_shortened(facts, plan, f"{rewrite.name} at {entry.site}", feeder[0])
    return Asked(rewrite, stack, site, options, feeder)


def rewrite_layers(
    work: Workspace,
    asked: Iterable[Asked],
    stack: TokenStack,
    depths: range,
    state: StackState,
    now: Callable[[Site], Site],
) -> None:
    """Rewrite the attention of a stack's layers at some depths, which have the rows of ``state``.

    ``now`` finds a site's value as it is now.
    """
    for one in asked:
        layers = [layer for layer in one.layers if layer.depth in depths]
        if one.stack is not stack or not layers:
            continue
        sites = {site.depth: now(site) for site in stack.sites}
        marks = _marks(work, one, sites[layers[0].depth], state)
        for layer in layers:
            _rewrite(work, one, layer, sites[layer.depth], state, marks)


def _marks(work: Workspace, one: Asked, site: Site, state: StackState) -> fx.Node | None:
    """Insert what the rewrite marks among the rows there are now, fp32 ``[B, N]``."""
    if one.rewrite.mark is None:
        return None
    operands, mark = Operands(), one.rewrite.mark
    assert state.mask is not None
    visual = operands.slot(state.mask)
    feeders = {} if one.feeder is None else {site.name: one.feeder}
    with work.after(site.value):
        tower = read_tower(work, operands, one.stack, site, state, feeders)

        def marked(*given: Tensor) -> Tensor:
            candidates = visual(given)
            return mark(Marking(candidates, tower(given, candidates), one.options))

        return work.splice(marked, operands.nodes)


def _rewrite(
    work: Workspace, one: Asked, layer: Layer, site: Site, state: StackState, marks: fx.Node | None
) -> None:
    lead = lead_axes(work.axes[site.value], site.dim, site.tokens)
    recipe = tap_recipe(layer, work.facts.dims, lead)
    attention, rewrite = layer.attention[0], one.rewrite
    if recipe is None or attention.queries.root is not attention.keys.root:
        raise UnsupportedError("rows of another stream ask here", where=describe(attention.node))
    node = attention.node
    scaling = rewrite.scaling if attention.fused and rewrite.rows == "behind" else None
    operands = Operands()
    old, own = operands.slot(node), operands.slots(recipe.nodes)
    value, visual = operands.slot(site.value), operands.slot(_present(state.mask))
    marked = operands.maybe(marks)
    view = stream_view(work, one.stack, site, state)
    layout = layout_of(node, work.facts.dims, lead, -2, -1)
    stored = _stored(node)

    def attended(given: tuple[Tensor, ...]) -> Attended:
        tap, shown = recipe.build(own(given)), layout.apply(old(given))
        every = torch.arange(shown.shape[2], device=shown.device)
        at = last_rows(tap) if rewrite.rows == "last" else every.expand(shown.shape[0], -1)
        hidden, candidates = view.see(value(given)), visual(given)
        return Attended(tap, hidden, candidates, marked(given), at, one.options)

    def rewritten(*given: Tensor) -> Tensor:
        taps, before = attended(given), old(given)
        shown, at, candidates = layout.apply(before), taps.at, taps.candidates
        if scaling is not None:
            sums = tuple(layout.apply(answer) for answer in given[len(operands.nodes) :])
            made = scaling.mixed(taps, shown, sums)
        elif attention.fused:
            made = _mixed(rewrite.attend(taps), taps.layer.value)
        else:
            made = rewrite.attend(taps)
        made = made.to(before.dtype)
        if rewrite.rows == "last":
            index = at.unsqueeze(1).unsqueeze(-1).expand(-1, shown.shape[1], -1, shown.shape[3])
            return stored(layout.put(shown.scatter(2, index, made), before))
        asked = rows_behind(candidates).unsqueeze(1).unsqueeze(-1)
        return stored(layout.put(torch.where(asked, made, shown), before))

    with work.graph.inserting_before(node.next):
        users = list(node.users)
        answers: list[fx.Node] = []
        if scaling is not None:
            answers = ask_again(work, attention, recipe.value, scaling, attended, operands)
        new = work.splice(rewritten, [*operands.nodes, *answers])
    work.axes[new] = work.axes[node]
    for user in users:
        user.replace_input_with(node, new)


def _mixed(weights: Tensor, value: Tensor) -> Tensor:
    """Return ``[B, H, T, e]`` of weights ``[B, H, T, N]``; heads share values in equal groups."""
    heads = value.shape[1]
    grouped = weights.unflatten(1, (heads, weights.shape[1] // heads))
    return torch.matmul(grouped, value.float().unsqueeze(2)).flatten(1, 2)


def _stored(node: fx.Node) -> Callable[[Tensor], Tensor]:
    """Return how to store a value in the order of dims that ``node`` has: views rely on it."""
    strides = [s if isinstance(s, int) else s.node.hint or 0 for s in node.meta["val"].stride()]
    order = sorted(range(len(strides)), key=lambda dim: -strides[dim])
    back = [order.index(dim) for dim in range(len(order))]

    def stored(value: Tensor) -> Tensor:
        ordered = value.permute(order)
        return ordered.clone(memory_format=torch.contiguous_format).permute(back)

    return stored


def _present(node: fx.Node | None) -> fx.Node:
    assert node is not None
    return node


def neutral(plan: Plan) -> Plan:
    """Return the plan with every rewrite's options at those under which nothing changes."""
    entries = (
        replace(entry, options={**entry.options, **find_rewrite(entry.method).neutral})
        for entry in plan.attention
    )
    return replace(plan, attention=tuple(entries))
