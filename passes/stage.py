"""Stage: score the rows of a stack at a site, choose, and cut there.

What is inserted: taps → score (the method's own function, traced) → ``select`` → the cut, and the
selection trace: the original rows that stayed, and the scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from tokopt.ir.axis import Axis
from tokopt.ir.dialect import OPS
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import TokenStack
from tokopt.ir.layout import lead_axes
from tokopt.ir.plan import Stage
from tokopt.ir.sites import Site
from tokopt.passes.cut import Cut
from tokopt.passes.grouping import group_means, group_table, rows_of_groups
from tokopt.passes.methods.method import Method
from tokopt.passes.placing import refuse_groups
from tokopt.passes.reading import origins, read_site, token_rows
from tokopt.passes.remembered import memory_inputs
from tokopt.passes.scoring import combine_rows, remember_rows, score_rows, weigh_rows
from tokopt.passes.shared import share_scores
from tokopt.passes.stack_state import StackState
from tokopt.passes.workspace import Count, Workspace, aten


@dataclass
class Inserted:
    """One stage's trace: ``[B, K]`` original stream rows kept, fp32 ``[B, N]`` scores.

    ``memory``: what it remembers, by the input that holds it: its shape, and the value to keep.
    """

    kept: fx.Node
    scores: fx.Node
    memory: Mapping[str, tuple[tuple[int, ...], fx.Node]] = field(default_factory=dict)


def insert_stage(
    work: Workspace,
    stack: TokenStack,
    site: Site,
    stage: Stage,
    method: Method,
    state: StackState,
    seed: int,
    number: int,
) -> tuple[Inserted, Cut]:
    """Insert one stage's scores and selection in place; return its trace and the cut to make.

    ``number`` is the stage's place in the plan.
    """
    _check(stage, site, state)
    if method.combine is not None:
        refuse_groups(method.name, site.name, site.group)
    lead = lead_axes(work.axes[site.value], site.dim, site.tokens)
    kept_before = memory_inputs(work, stack, site, method, state, number)
    with work.after(site.value):
        reading = read_site(work, stack, site, stage, method, state, lead, seed, kept_before)
        scores = score_rows(work, reading, method)
        keep = stage.keep // site.run
        protected = work.minus(state.rows, state.visual // site.run)
        total = work.plus(protected, keep)
        images, ranked = state.images.get(site.name), scores
        if images is not None:
            ranked = share_scores(work, stack, state, scores, stage.keep, images)
        index = _select(work, stack, site, state, ranked, total, lead)
        stream = _stream_rows(work, stack, site, state, index, scores)
        short = combine_rows(work, reading, method, stream) if method.combine else None
        weighed = weigh_rows(work, reading, method, stream) if method.weigh else None
        after = remember_rows(work, reading, method, stream) if method.remember else {}
        kept, stayed = _follow(work, site, state, stream, scores)
    cut = Cut(work, site.value, site.tokens, lead, index, total, state.rows)
    if short is not None:
        cut.replace_value(short)
    state.rows, state.visual, state.origin = total, stage.keep, kept
    state.carried[stage.method] = (stayed, site.depth)
    state.sizes = state.sizes if weighed is None else weighed
    memory = {
        node.name: (tuple(node.meta["val"].shape), after[name])
        for name, node in kept_before.items()
    }
    return Inserted(kept, scores, memory), cut


def enter_stack(work: Workspace, old: TokenStack, new: TokenStack, state: StackState) -> None:
    """Go on with the rows that are left in another stack along the same token axis, in place.

    Its layers lie behind every cut so far, and other learned rows may stand before the tokens.
    """
    state.cuts, state.carried, state.sizes = [], {}, None
    if state.origin is None:
        return
    assert isinstance(new.count, int)
    first, count = new.protected, new.count

    def shifted(origin: Tensor, behind: int) -> Tensor:
        tokens = origin.narrow(1, old.protected, state.visual) - old.protected + first
        front = torch.arange(first, device=origin.device).expand(origin.shape[0], -1)
        back = torch.arange(behind, device=origin.device) + (first + count)
        return torch.cat([front, tokens, back.expand(origin.shape[0], -1)], dim=1)

    with work.graph.inserting_before(state.origin.next):
        rows = work.length(new.rows)
        behind = work.minus(rows, first + count)
        state.origin = work.splice(shifted, [state.origin, behind])


def refuse_barrier(stack: TokenStack, site: Site) -> None:
    """Refuse a site that is not legal, naming the node and the sites that are."""
    if site.barrier is not None:
        legal = ", ".join(s.name for s in stack.sites if s.legal) or "none"
        raise UnsupportedError(
            f"rows cannot be dropped at {site.name}: {site.barrier}",
            expected=f"a legal site of this stack: {legal}",
            hint="tokopt inspect lists sites and barriers",
        )


def _check(stage: Stage, site: Site, state: StackState) -> None:
    if stage.keep % site.group:
        raise UnsupportedError(
            f"keep = {stage.keep} at {site.name}, where rows leave in groups of {site.group}",
            expected=f"a multiple of {site.group}",
        )
    if stage.keep > state.visual:
        raise UnsupportedError(
            f"keep = {stage.keep} at {site.name}, where {state.visual} visual rows are left",
            expected="stages that keep fewer and fewer rows",
        )


def _select(
    work: Workspace,
    stack: TokenStack,
    site: Site,
    state: StackState,
    scores: fx.Node,
    total: Count,
    lead: tuple[Axis, ...],
) -> fx.Node:
    """Insert ``select`` over the token axis (in groups where the site has them)."""
    run, front, pick = site.run, stack.protected, OPS["select"].overload

    def choose(values: Tensor, rows: int, total_rows: int, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            values = values.narrow(1, front, rows * run)
            if run > 1:
                values = values.reshape(values.shape[0], rows, run).mean(-1)
            mask = torch.ones_like(values, dtype=torch.bool)
        return pick(values, mask, total_rows)

    def choose_scattered(values: Tensor, rows: int, total_rows: int, *origin: Tensor) -> Tensor:
        values = values.narrow(1, front, rows)
        table = group_table(site, values, token_rows(stack, rows, *origin))
        means = group_means(values, table)
        chosen = pick(means, torch.ones_like(means, dtype=torch.bool), total_rows // site.group)
        return rows_of_groups(table, chosen)

    operands: list[object] = [scores, state.rows, total]
    if site.scattered:
        index = work.splice(choose_scattered, [*operands, *origins(state)])
    else:
        index = work.splice(choose, [*operands, *([] if state.mask is None else [state.mask])])
    if not lead:
        return work.call(aten.squeeze.dim, index, 0)
    if len(lead) > 1:
        place = {axis.root: d for d, axis in enumerate(work.axes[site.value])}
        sizes = [work.size(site.value, place[axis.root]) for axis in lead]
        return work.call(aten.reshape.default, index, [*sizes, total])
    return index


def _stream_rows(
    work: Workspace,
    stack: TokenStack,
    site: Site,
    state: StackState,
    index: fx.Node,
    scores: fx.Node,
) -> fx.Node:
    """Insert the stream rows that stay, int64 ``[B, K]``: the chosen and all beside them."""
    group, front = site.run, stack.protected

    def lift(chosen: Tensor, values: Tensor, rows: int) -> Tensor:
        chosen = chosen.reshape(-1, chosen.shape[-1])
        if group > 1:
            inner = torch.arange(group, device=chosen.device)
            chosen = (chosen.unsqueeze(-1) * group + inner).flatten(-2)
        pieces = [chosen + front]
        if front:
            before = torch.arange(front, device=chosen.device)
            pieces.insert(0, before.unsqueeze(0).expand(chosen.shape[0], front))
        end = front + rows * group
        behind = 0 if stack.merge is not None else values.shape[1] - end
        if not isinstance(behind, int) or behind:  # rows behind the tokens stay
            after = torch.arange(behind, device=chosen.device) + end
            pieces.append(after.unsqueeze(0).expand(chosen.shape[0], behind))
        return torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]

    return work.splice(lift, [index, scores, state.rows])


def _follow(
    work: Workspace, site: Site, state: StackState, stream: fx.Node, scores: fx.Node
) -> tuple[fx.Node, fx.Node]:
    """Insert what the cut does to the stack's own books: origin, mask, carried score."""
    stayed = work.call(aten.gather.default, scores, 1, stream)
    origin = stream
    if state.origin is not None:
        origin = work.call(aten.gather.default, state.origin, 1, stream)
    if state.mask is not None:
        state.mask = work.call(aten.gather.default, state.mask, 1, stream)
    if state.sizes is not None:
        state.sizes = work.call(aten.gather.default, state.sizes, 1, stream)
    for name, (node, depth) in state.carried.items():
        state.carried[name] = (work.call(aten.gather.default, node, 1, stream), depth)
    state.cuts.append((site.depth, stream))
    return origin, stayed
