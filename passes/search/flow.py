"""Flow: how much of the visual information flow a plan leaves, read off without running it.

After FlowCut (arXiv:2505.19536): in layer l the relay takes from row j

    F_l(j) = a_l(j) · ‖mean_h v_l(j)‖₁ / Σ_j …        a: head mean of the relay's attention

over the visual rows of the unpruned model, on one instrumented run.  A plan's *retained flow* is
the mean over all layers of every stack on the way (tower, decoder) of Σ F_l(j) over the rows that
are there in layer l.  Which rows those are follows from the methods' scores, taken on the unpruned
model as well, once per site and method: thousands of plans are then judged a second.

It is an estimate: scores behind an earlier stage would differ, merged rows count as gone, and a
score that depends on how many rows stay is that for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget import row_count
from tokopt.passes.methods.method import Method
from tokopt.passes.methods.rows import relay_attention, share
from tokopt.passes.observe import Observation
from tokopt.passes.search.replay import Replay


@dataclass(frozen=True)
class StackFlow:
    """``layers`` fp32 ``[L, I, n]``: each layer's flow over the n visual rows, in order."""

    stack: TokenStack
    layers: Tensor


class Flow:
    """Retained flow of plans over the batches of a replay; ``seen`` are their observations."""

    def __init__(
        self,
        facts: Facts,
        replay: Replay,
        seen: Sequence[Observation],
        methods: Callable[[str], Method],
        seed: int,
    ) -> None:
        self.facts, self.replay, self.methods, self.seed = facts, replay, methods, seed
        self._seen = seen
        self._flows = {
            role: torch.cat([_flow(one, role) for one in seen], 1) for role in seen[0].stacks
        }
        self._order: dict[tuple[str, str, str], Tensor] = {}

    def retained(self, plan: Plan) -> float:
        """Return the share of the flow that a plan leaves, 0 .. 1; 1 where it drops nothing.

        Raises ``UnsupportedError`` where a stage of it is not legal.
        """
        return float(torch.cat(list(self.by_layer(plan).values())).mean())

    def by_layer(self, plan: Plan) -> dict[str, Tensor]:
        """Return the share that a plan leaves in each layer of every stack on the way, by role.

        A tower is on the way where a stage is in it.  Raises as ``retained`` does.
        """
        staged: dict[str, list[tuple[int, Stage]]] = {}
        for stage in plan.stages:
            stack, site = self.facts.find_site(stage.site)
            staged.setdefault(stack.role, []).append((site.depth, stage))
        there: dict[str, Tensor] = {}
        shares: dict[str, Tensor] = {}
        consumer = self.facts.consumer
        for stack in sorted(self.facts.stacks, key=lambda s: s is consumer):
            if stack.role not in self._flows:
                continue
            flow = self._flows[stack.role]
            rows = torch.ones_like(flow[0], dtype=torch.bool)
            if stack is consumer:
                rows = self._arrived(rows, staged, there)
            stages = sorted(staged.get(stack.role, []), key=lambda at: at[0])
            if not stages and stack is not consumer:
                continue
            left: list[Tensor] = []
            back: dict[int, Tensor] = {}
            for depth in range(len(flow) + 1):
                rows = back.get(depth, rows)
                for at, stage in stages:
                    if at == depth:
                        if stage.until is not None:
                            back[self.facts.find_site(stage.until)[1].depth] = rows
                        rows = _best(self.order(stage), rows, stage.keep)
                if depth < len(flow):
                    left.append((flow[depth] * rows).sum(-1).mean())
            there[stack.role] = rows
            shares[stack.role] = torch.stack(left)
        return shares

    def knows(self, stage: Stage) -> bool:
        """Return whether the rows of a stage's site have been scored by its method."""
        return _key(stage) in self._order

    def order(self, stage: Stage) -> Tensor:
        """Return each visual row's place by the stage's score, best 0, int64 ``[I, n]``."""
        if not self.knows(stage):
            self._order[_key(stage)] = self._scored(stage)
        return self._order[_key(stage)]

    def _scored(self, stage: Stage) -> Tensor:
        stack, site = self.facts.find_site(stage.site)
        every = Stage(stage.site, stage.method, row_count(stack), stage.options)
        plan = Plan((every,), seed=self.seed)
        applied = apply_plan(self.facts.exported, plan, self.methods)
        name = applied.trace[0][1]
        found: list[Tensor] = []
        for values, one in zip(self.replay.run(applied.exported, [name]), self._seen, strict=True):
            candidates = one.stacks[stack.role].candidates
            scores = values[name][candidates].reshape(len(candidates), -1)
            if site.group > 1:
                scores = _of_groups(scores, site.groups().to(scores.device))
            ranked = torch.sort(scores, dim=1, descending=True, stable=True)[1]
            found.append(torch.argsort(ranked, dim=1))
        return torch.cat(found)

    def _arrived(
        self,
        rows: Tensor,
        staged: Mapping[str, list[tuple[int, Stage]]],
        there: Mapping[str, Tensor],
    ) -> Tensor:
        """Return the rows of the consumer whose units the stages of its towers left."""
        for role, stages in staged.items():
            if role not in there:
                continue
            _, site = self.facts.find_site(max(stages, key=lambda at: at[0])[1].site)
            arrival = self.facts.arrival(site, self.facts.consumer)
            if arrival is None:
                continue
            units = site.groups().to(rows.device)
            left = torch.zeros(len(there[role]), int(units.max()) + 1, dtype=torch.bool)
            left = left.scatter(1, units.expand(len(left), -1), there[role])
            of_sequence = left.reshape(len(rows), -1)
            source = arrival.units
            rows = rows & (of_sequence[:, source.clamp_min(0)] | (source < 0))
        return rows


def _key(stage: Stage) -> tuple[str, str, str]:
    return stage.site, stage.method, str(sorted(stage.options.items()))


def _flow(seen: Observation, role: str) -> Tensor:
    """Return F of every layer of a stack, ``[L, I, n]``; even where a layer attends in windows."""
    one = seen.stacks[role]
    candidates = one.candidates
    items = len(candidates)
    flows = torch.full(
        (len(one.stack.stack.layers), items, int(candidates[0].sum())),
        1.0 / int(candidates[0].sum()),
    )
    for layer in one.layers:
        density = layer.value.float().mean(1).abs().sum(-1)
        mass = share(relay_attention(layer, one.stack.relay) * density, candidates)
        flows[layer.depth] = mass[candidates].reshape(items, -1)
    return flows


def _of_groups(scores: Tensor, groups: Tensor) -> Tensor:
    """Return the mean score of each row's group, ``[I, n]``."""
    count = int(groups.max()) + 1
    index = groups.expand(len(scores), -1)
    sums = scores.new_zeros(len(scores), count).scatter_add(1, index, scores)
    return (sums / torch.bincount(groups, minlength=count)).gather(1, index)


def _best(order: Tensor, there: Tensor, keep: int) -> Tensor:
    """Return the ``keep`` rows of lowest place among those that are there."""
    place = torch.where(there, order, order.shape[1])
    return there & (torch.argsort(torch.argsort(place, dim=1), dim=1) < keep)
