"""A search under a limit of bytes trades rows for bits: what it judges is what programs answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from testsuite.zoo.handvlm import Sizes
from testsuite.zoo.handvlm_parts import inputs, parts
from torch import Tensor

import tokopt
from tokopt.cli.asked import Wanted
from tokopt.cli.clock import Clock
from tokopt.cli.separate_gates import torch_run
from tokopt.cli.separate_programs import SeparatePrograms
from tokopt.ir.program import Program
from tokopt.ir.save import save
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.kv.asked import Auto
from tokopt.passes.limits import Limits
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.search.bounded import Bounded
from tokopt.passes.search.effort import Effort
from tokopt.passes.search.search import Search
from tokopt.passes.validate import Checked
from tokopt.passes.within import Meter
from tokopt.targets.parts import FIRST

SIZES = Sizes(layers=2, tower_layers=3)
KV, TEXT = 0.2, 9
FIRST_SAID, NEXT_SAID = "output_0", "decode_output_0"
BITS = {"half": 16, "int8": 8, "int4": 4}
FEW = {name: METHODS[name] for name in ("divprune", "stride")}


def prompts() -> dict[str, Tensor]:
    pixels, ids = inputs(SIZES, 3, TEXT, 3)
    return {"pixels": pixels, "input_ids": ids}


def step(token: Tensor) -> dict[str, Tensor]:
    """Return everything that prefill and decode take, ``token`` behind the prompts."""
    asked = prompts()
    place = torch.full_like(token, asked["input_ids"].shape[1])
    return {**asked, "decode_input_ids": token, "positions": place}


def far(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> float:
    """Return the mean divergence over the last prompt token and the one behind."""
    found = []
    for name in (FIRST_SAID, NEXT_SAID):
        p, q = (one[name][:, -1].double().log_softmax(-1) for one in (wanted, got))
        found.append(float((p.exp() * (p - q)).sum(-1).mean()))
    return sum(found) / 2


def spent(stages: Iterable[tuple[str, int]], cache: Iterable[tuple[str, str]]) -> float:
    """Return what a plan spends of ``kv``: rows of each layer by bits of its sides."""
    left, places, found = SIZES.visual, dict(stages), 0.0
    left = min([left, *(keep for site, keep in places.items() if site.startswith("vision"))])
    for layer, sides in enumerate(cache):
        left = min(left, places.get(f"decoder:{layer}", left))
        found += left * sum(BITS[side] for side in sides) / 32
    return found / (SIZES.visual * SIZES.layers)


def test_every_plan_judged_meets_the_bytes_and_is_judged_by_both_programs() -> None:
    """The reference runs the programs that store caches themselves."""
    whole = SeparatePrograms.of(Program(parts(SIZES, dynamic=True)), None, Clock(True))
    whole = whole.with_cache(Auto(further=True, apart=True), None)
    stored = whole.next_token([prompts()])
    assert stored is not None and whole.cache is not None
    bounded = Bounded(Meter(whole.facts, prompts()), Limits(kv=KV))
    search = Search(whole.facts, [prompts()], Fraction(1), FEW, bounded=bounded, stored=stored)
    judged = [one for one in search.run(Effort(6, 8, 2)).judged if one.plan is not None]
    for one in judged:
        assert one.plan is not None
        sides = [(layer.key, layer.value) for layer in one.plan.cache]
        amount = spent([(stage.site, stage.keep) for stage in one.plan.stages], sides)
        assert amount <= KV * (1 + 1e-12), one
        if one.origin != "search":
            assert one.plan.cache == whole.cache.entries
    assert len({one.plan.cache for one in judged if one.plan is not None}) > 1
    original, graphs = whole.separate.original, whole.separate.program.graphs
    first = torch_run(original, graphs, step(torch.zeros(3, 1, dtype=torch.int64)))
    given = step(first[FIRST_SAID][:, -1].argmax(-1, keepdim=True))
    wanted = torch_run(original, graphs, given)
    for one in (judged[0], judged[-1]):
        assert one.plan is not None
        applied = apply_plan(whole.facts.exported, one.plan, METHODS.__getitem__)
        checked = Checked(whole.facts, one.plan, applied, METHODS.__getitem__)
        final = whole.with_cache(one.plan.cache, None).rewritten(checked, FIRST, ()).final
        programs = {name: part.exported for name, part in final.parts.items()}
        got = torch_run(final.chain, programs, given)
        assert one.values["kl"] == pytest.approx(far(wanted, got), rel=1e-3)


@pytest.mark.exhaustive
def test_tokens_and_bits_are_traded_by_what_the_artifact_answers(tmp_path: Path) -> None:
    archive, file = tmp_path / "parts.pt2", tmp_path / "samples.safetensors"
    save(Program(parts(SIZES, dynamic=True)), archive)
    save_file(prompts(), file)
    search = {"search": Wanted(file, trials=12), "target": "eager", "kv": "auto"}
    made = tokopt.compile(archive, tmp_path / "built", budget=Limits(kv=KV), **search)
    assert made.ok and made.manifest.budget.total["kv"].predicted <= KV * (1 + 1e-12)
    (found,) = json.loads((made.folder / "search.json").read_text()).values()
    for row in found["judged"]:
        places = [(stage["site"], stage["keep"]) for stage in row["stages"]]
        assert spent(places, [tuple(one.split("/")) for one in row["cache"]]) <= KV * (1 + 1e-12)
    best = found["judged"][0]
    assert best["cache"] == [f"{one.key}/{one.value}" for one in made.plan.cache]
    assert best["cache"] == [f"{one.key}/{one.value}" for one in made.manifest.cache]
    full = tokopt.compile(archive, tmp_path / "full", budget=1.0, method="stride", target="eager")
    whole, model = tokopt.load(full.folder), tokopt.load(made.folder)
    first = whole(step(torch.zeros(3, 1, dtype=torch.int64)))
    given = step(first[FIRST_SAID][:, -1].argmax(-1, keepdim=True))
    assert best["kl"] == pytest.approx(far(whole(given), model(given)), rel=1e-3)
