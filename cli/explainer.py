"""Explainer: what an artifact's folder says of its plan, and what a run of the original adds.

From the folder: what was asked and is spent, what each stage costs, and where a search chose the
plan, what was judged at other sites.  With the archive: what each stage loses, and the flow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokopt.cli.asked import SEARCH
from tokopt.cli.inputs import check_merges, inputs_for
from tokopt.cli.separate import Separate
from tokopt.cli.verifier import original_of
from tokopt.ir.errors import InputError
from tokopt.ir.facts import Facts, analyse
from tokopt.ir.placeholders import find_placeholders
from tokopt.ir.plan import Plan
from tokopt.passes.limits import Limits
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.search.losses import Losses, losses
from tokopt.passes.select import read_plan_text
from tokopt.targets.artifact import PLAN
from tokopt.targets.manifest import Budget, CachedLayer, Manifest, read_manifest
from tokopt.targets.parts import of_part


def explain(
    folder: str | Path, against: str | Path | None = None, inputs: str | Path | None = None
) -> dict[str, Any]:
    """Return the explanation of every budget of an artifact, as plain data.

    ``against`` is the archive it was made from; its example inputs serve where no ``inputs`` are
    given.  Raises ``InputError`` where ``folder`` is no artifact and ``against`` another archive.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    ground = None if against is None else _ground(manifest, against, inputs)
    searched = _searched(folder) if SEARCH in manifest.files else {}
    told = []
    for part, own in manifest.parts.items():
        file = folder / of_part(PLAN, part)
        plan = Plan.from_toml(read_plan_text(str(file)), str(file))
        lost = None if ground is None else losses(ground[0], [ground[1]], plan, find_method)
        asked = own.budget.requested
        rows = Limits(tokens=asked.get("tokens")).rows
        judged = searched.get(f"{rows:g}") if asked else None
        told.append({**_budget(own.budget, plan, judged, lost), "cache": _cached(own.cache)})
    return {
        "schema_version": 1,
        "artifact": str(folder),
        "status": manifest.status,
        "target": manifest.target,
        "sparse_decode": None if manifest.sparse is None else vars(manifest.sparse),
        "budgets": told,
    }


def _ground(
    manifest: Manifest, against: str | Path, inputs: str | Path | None
) -> tuple[Facts, Mapping[str, Tensor]]:
    """Return the original, whole, and the inputs it is run on."""
    program = original_of(manifest, against)
    with torch.no_grad():
        if len(program.graphs) > 1:
            separate = Separate.of(program)
            facts = analyse(separate.joined)
            given = separate.of_joined(separate.inputs(inputs))
        else:
            facts = analyse(normalize(program.main))
            given = inputs_for(program.main, inputs)
        check_merges(given, find_placeholders(facts), inputs)
    return facts, given


def _searched(folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / SEARCH).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        where = str(folder / SEARCH)
        raise InputError(f"what the search judged cannot be read: {error}", where=where) from error
    return found if isinstance(found, Mapping) else {}


def _budget(
    budget: Budget, plan: Plan, judged: Mapping[str, Any] | None, lost: Losses | None
) -> dict[str, Any]:
    stages = []
    for number, stage in enumerate(plan.stages):
        method = find_method(stage.method)
        cost = budget.selector[number] if number < len(budget.selector) else None
        loss = None if lost is None else lost.stages[number]
        stages.append(
            {
                **{name: getattr(stage, name) for name in ("site", "method", "keep", "until")},
                "options": dict(stage.options),
                "paper": method.paper,
                "about": method.notes,
                "flops": None if cost is None else cost.flops,
                "bytes": None if cost is None else cost.bytes,
                "share_of_saved": _share(cost.flops if cost else None, budget.flops_saved),
                "distance_so_far": None if loss is None else dict(loss.distance),
                "flow_so_far": None if loss is None else loss.flow,
            }
        )
    return {
        "requested": dict(budget.requested),
        "spent": {name: amount.predicted for name, amount in budget.total.items()},
        "flops_saved": budget.flops_saved,
        "stages": stages,
        "attention": [f"{entry.method} from {entry.site}" for entry in plan.attention],
        "layers": {
            layer.layer: amount.predicted
            for layer in budget.layers
            if (amount := layer.spent.get("tokens")) is not None
        },
        "flow": None if lost is None else {r: list(kept) for r, kept in lost.flow.items()},
        "distance": None if lost is None else dict(lost.whole),
        "samples": None if lost is None else lost.samples,
        "search": None if judged is None else _why(judged),
    }


def _cached(layers: Sequence[CachedLayer]) -> list[str]:
    """Return how decode stores its cache, neighbouring layers that do it alike together."""
    told = []
    for form, run in groupby(layers, key=lambda one: (one.key, one.value, one.note)):
        members, (key, value, note) = list(run), form
        first, last = members[0].layer, members[-1].layer
        which = f"layer {first}" if first == last else f"layers {first} to {last}"
        stored, full = members[0].bytes_per_token, members[0].full
        why = f", up to {members[0].window} last rows in 16 bits" if members[0].window else ""
        why += f" ({note})" if note else ""
        told.append(f"{which}: {key}/{value}, {stored:g} of {full:g} bytes a token{why}")
    return told


def _share(flops: int | None, saved: int | None) -> float | None:
    return flops / saved if flops is not None and saved else None


def _why(judged: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the plan stands among all that were judged: by site, and by published method."""
    measure, rows = judged["measure"], judged["judged"]
    sites: dict[str, dict[str, Any]] = {}
    for row in rows:  # the best first
        told = {"distance": row[measure], "origin": row["origin"], "stages": row["stages"]}
        for stage in row["stages"]:
            sites.setdefault(stage["site"], {"site": stage["site"], **told})
    published = [row for row in rows if row["origin"] != "search"]
    return {
        "measure": measure,
        "whole": judged["whole"],
        "judged": len(rows),
        "refused": len(judged["refused"]),
        "best": rows[0][measure],
        "origin": rows[0]["origin"],
        "published": {row["origin"]: row[measure] for row in published},
        "sites": list(sites.values()),
    }
