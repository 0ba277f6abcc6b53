"""Property: a random transformer under a random plan computes what its oracle says."""

from __future__ import annotations

import random

import pytest
from testsuite.exhaustive import thinned
from testsuite.passes.analysed import Analysed
from testsuite.passes.families import checked, every_input, failures
from testsuite.zoo import random_transformer
from testsuite.zoo.random_spec import draw

from tokopt.ir.facts import Facts, analyse
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.normalize import normalize

pytestmark = pytest.mark.slow

SEEDS = range(50)


def family_of(seed: int) -> Analysed:
    sample = random_transformer.sample(seed)
    return Analysed(sample, analyse(normalize(sample.exported)))


def draw_plan(facts: Facts, seed: int) -> Plan | None:
    """One or two stages at legal sites, counts that shrink; None where no site is legal."""
    dice = random.Random(seed + 77)
    (stack,) = facts.stacks
    legal = [site for site in stack.sites if site.legal]
    if not legal:
        return None
    sites = sorted(dice.sample(legal, min(len(legal), dice.choice([1, 2, 2]))), key=by_depth)
    assert isinstance(stack.count, int)
    keep, stages = stack.count, []
    for site in sites:
        methods = ["random", "stride"]
        methods += ["flowcut"] if site.depth else []
        methods += ["vtc_cls"] if site.depth and stack.relay is not None else []
        keep = max(site.group, dice.randint(1, keep) // site.group * site.group)
        stages.append(Stage(site.name, dice.choice(methods), keep))
    return Plan(tuple(stages), seed=seed)


def by_depth(site: object) -> int:
    return site.depth  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", thinned(SEEDS, 8))
def test_a_random_transformer_computes_what_its_oracle_says(seed: int) -> None:
    family = family_of(seed)
    chosen = draw_plan(family.facts, seed)
    assert chosen is not None, draw(seed)
    assert not failures(checked(family, chosen), every_input(family)[-2:]), (draw(seed), chosen)
