"""Searcher: a compile's search: its samples, its storage, its progress, and what is told of it."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from tokopt.cli.asked import Wanted
from tokopt.cli.calibration import calibration
from tokopt.cli.console import say, track
from tokopt.cli.eval_data import ANSWERED
from tokopt.cli.whole import Whole
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.budget import spent
from tokopt.passes.fit import Fitted
from tokopt.passes.search.bounded import Bounded
from tokopt.passes.search.effort import EFFORTS
from tokopt.passes.search.objective import DEFAULT
from tokopt.passes.search.search import Found, Search
from tokopt.passes.search.study import Judged

WEAK = "the archive's example inputs are what plans are judged on: a few samples tell little"


class Searcher:
    """Searches of one compile, one for each budget, on the same samples.

    The journal is ``journal`` unless a storage was asked for; it is taken up again where it is
    there already, as behind a kill.
    """

    def __init__(
        self,
        whole: Whole,
        wanted: Wanted,
        sha256: str,
        journal: Path,
        quiet: bool,
    ) -> None:
        self.facts, self.methods = whole.facts, whole.methods
        self.wanted, self.quiet = wanted, quiet
        self.sha256 = sha256
        self.storage = wanted.storage if wanted.storage is not None else journal
        self.weak = wanted.data is None
        self.batches = (
            [dict(whole.given)]
            if wanted.data is None
            else calibration(self.facts.exported, wanted.data, whole.placeholders, wanted.processor)
        )
        self.answered = [batch.pop(ANSWERED, None) for batch in self.batches]
        if self.weak and not quiet:
            say(f"warning: {WEAK} (--calibration FILE)")
        self.stored = whole.next_token(self.batches)
        self.found: dict[str, Found] = {}

    def fit(self, budget: float, seed: int, bounded: Bounded | None = None) -> Fitted:
        """Return the best plan found for a budget; Ctrl-C ends the search, not the compile."""
        exact = Fraction(repr(float(budget)))
        search = Search(
            self.facts,
            self.batches,
            exact,
            self.methods,
            seed=seed,
            storage=self.storage,
            name=self._name(budget, seed, bounded),
            bounded=bounded,
            grid=self.wanted.grid,
            answered=self.answered,
            stored=None if bounded is None or bounded.limits.kv is None else self.stored,
        )
        effort = EFFORTS[self.wanted.effort].with_trials(self.wanted.trials)
        if self.quiet:
            found = search.run(effort)
        else:
            with track(f"search at {budget:g}", len(search.methods) + effort.trials) as advance:
                found = search.run(effort, lambda done, _, best: advance(done, _told(best)))
        if not found.whole and not self.quiet:
            say("interrupted: going on with the best plan so far (Ctrl-C again ends the compile)")
        self.found[f"{budget:g}"] = found
        assert found.best.plan is not None
        return Fitted(found.best.plan, self._note(found), spent(self.facts, found.best.plan))

    def table(self) -> str:
        """Return what was judged as JSON: by budget, the best first."""
        return json.dumps({b: _as_data(found) for b, found in self.found.items()}, indent=1) + "\n"

    def _name(self, budget: float, seed: int, bounded: Bounded | None) -> str:
        """Return a digest of everything that a judgement depends on."""
        digest = hashlib.sha256()
        for lengths, batch in zip(self.answered, self.batches, strict=True):
            digest.update(repr(None if lengths is None else lengths.tolist()).encode())
            for key in sorted(batch):
                value = batch[key].detach().contiguous().cpu()
                digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
        parts: tuple[object, ...] = (self.sha256, digest.hexdigest(), f"{budget:g}", seed)
        parts += (sorted((name, str(one.tunes)) for name, one in self.methods.items()),)
        parts += (self.wanted.grid, DEFAULT)
        if self.stored is not None:
            parts += (self.stored.caches, self.stored.digest)
        if bounded is not None:
            device = bounded.meter.device
            parts += (bounded.limits, None if device is None else device.name, bounded.meter.stored)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def _note(self, found: Found) -> str:
        published = [j for j in found.judged if j.plan is not None and j.origin != "search"]
        nearest = min(published, key=lambda j: j.values[found.measure], default=None)
        told = f"{sum(j.plan is not None for j in found.judged)} plans judged by {found.measure}"
        told += f": {found.best.values[found.measure]:.4g} by {found.best.origin}"
        if nearest is not None and nearest is not found.best:
            told += f", the best published {nearest.values[found.measure]:.4g} ({nearest.origin})"
        told += "" if found.whole else "; interrupted"
        return f"{told}; {WEAK}" if self.weak else told


def _told(best: Judged | None) -> str:
    if best is None:
        return ""
    distance = ", ".join(f"{name} {value:.3g}" for name, value in best.values.items())
    return f"best so far: {distance} ({best.origin})"


def _as_data(found: Found) -> dict[str, Any]:
    fitting = [judged for judged in found.judged if judged.plan is not None]
    fitting.sort(key=lambda judged: (judged.values[found.measure], judged.number))
    refused = [judged for judged in found.judged if judged.plan is None]
    return {
        "measure": found.measure,
        "whole": found.whole,
        "judged": [
            {
                "trial": judged.number,
                "origin": judged.origin,
                **judged.values,
                "stages": [_stage(stage) for stage in judged.plan.stages],
                **_cache(judged.plan),
            }
            for judged in fitting
            if judged.plan is not None
        ],
        "refused": [
            {"trial": judged.number, "origin": judged.origin, "why": judged.why}
            for judged in refused
            if judged.origin != "search"
        ],
    }


def _stage(stage: Stage) -> dict[str, Any]:
    told = {"site": stage.site, "method": stage.method, "keep": stage.keep}
    return {**told, **({"options": dict(stage.options)} if stage.options else {})}


def _cache(plan: Plan) -> dict[str, Any]:
    return {"cache": [f"{one.key}/{one.value}" for one in plan.cache]} if plan.cache else {}
