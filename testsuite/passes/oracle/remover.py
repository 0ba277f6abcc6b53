"""Remover: the reference's own way to choose rows and take them away, item by item in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from testsuite.passes.oracle.sample_methods import reference_score
from testsuite.passes.oracle.tiny_vit import State
from torch import Tensor

from tokopt.ir.plan import Stage


@dataclass
class Remover:
    """Called by the reference before every layer of one stack and behind the last.

    ``visual(item, place)`` says what a row is, ``fixed`` a place that stays though it is visual;
    rows go in groups of ``group``; ``layers`` is the depth of ``end``.  For each stage ``scored``
    collects places and scores, ``left`` the places behind it.
    """

    stages: Sequence[Stage]
    layers: int
    visual: Callable[[int, int], bool]
    fixed: int | None = None
    relay: int = 0
    group: int = 1
    scored: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    left: list[Tensor] = field(default_factory=list)
    before: dict[str, tuple[int, list[dict[int, float]]]] = field(default_factory=dict)

    def __call__(self, depth: int, state: State) -> Tensor | None:
        """Return the rows that stay at a depth."""
        here = [s for s in self.stages if s.site.endswith((f":{depth}", self._end(depth)))]
        if not here:
            return None
        (stage,) = here
        since, scores = self.before.get(stage.method, (0, None))
        places = state.places.tolist()
        carried = None
        if scores is not None:
            pairs = zip(scores, places, strict=True)
            carried = torch.tensor([[score[p] for p in row] for score, row in pairs])
        found = reference_score(stage.method, state, since, self.relay, carried)
        self.scored.append((state.places, found))
        score = found.tolist()
        rows = [self._stay(stage, i, places[i], score[i]) for i in range(len(places))]
        named = [dict(zip(p, s, strict=True)) for p, s in zip(places, score, strict=True)]
        self.before[stage.method] = depth, named
        self.left.append(state.places.gather(1, torch.tensor(rows)))
        return torch.tensor(rows)

    def _end(self, depth: int) -> str:
        return ":end" if depth == self.layers else ":no such site"

    def _stay(self, stage: Stage, item: int, places: list[int], score: list[float]) -> list[int]:
        seen = [row for row, place in enumerate(places) if self.visual(item, place)]
        free = [row for row in seen if places[row] != self.fixed]
        keep = stage.keep - (len(seen) - len(free))
        units = [free[i : i + self.group] for i in range(0, len(free), self.group)]
        worth = {i: sum(score[row] for row in unit) for i, unit in enumerate(units)}
        best = sorted(worth, key=lambda i: (-worth[i], i))[: keep // self.group]
        kept = {row for i in best for row in units[i]}
        return [row for row in range(len(places)) if row in kept or row not in free]
