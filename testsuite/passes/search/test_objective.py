"""Distances: 0 to oneself, by the formula to others, of the last real token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import plan
from testsuite.passes.search.searched import batches, llava, replay, seen

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.observe import observe
from tokopt.passes.search.objective import Objective, divergence
from tokopt.passes.search.replay import Replay
from tokopt.passes.validate import run_program


def test_kl_of_two_coins_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2."""
    wanted, got = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[7.0, 7.0]])
    (found,) = divergence(wanted, got).tolist()
    assert math.isclose(found, 0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel_tol=1e-6)


def test_the_original_is_at_distance_nothing() -> None:
    objective = Objective(llava().facts, replay(), list(seen()))
    found = objective.distance(llava().facts.exported)
    assert abs(found["kl"]) < 1e-6 and abs(found["cosine"]) < 1e-6


def test_the_distance_of_a_plan_is_that_of_its_last_rows_in_numpy() -> None:
    facts = llava().facts
    exported = apply_plan(facts.exported, plan("decoder:1 stride 3"), find_method).exported
    found = Objective(facts, replay(), list(seen())).distance(exported)
    wanted = []
    for inputs in batches():
        rows = [
            run_program(p, inputs)[0][:, -1].double().numpy() for p in (facts.exported, exported)
        ]
        p, q = (np.exp(r) / np.exp(r).sum(-1, keepdims=True) for r in rows)
        wanted += (p * (np.log(p) - np.log(q))).sum(-1).tolist()
    assert math.isclose(found["kl"], float(np.mean(wanted)), rel_tol=1e-3)
    assert 0 < found["cosine"] < 2


def test_answers_in_prompts_are_judged_at_the_token_before_each_of_theirs() -> None:
    """Of an item: the mean over its last row and those before its answer's tokens, in numpy."""
    facts = llava().facts
    exported = apply_plan(facts.exported, plan("decoder:1 stride 3"), find_method).exported
    sizes = [len(next(iter(inputs.values()))) for inputs in batches()]
    lengths = [torch.arange(size) % 2 for size in sizes]  # an answer of one token, or none
    objective = Objective(facts, replay(), list(seen()), lengths)
    assert any(int(one.max()) for one in lengths)
    found = torch.cat([one["kl"] for _, one in objective.distances(exported)])
    wanted = []
    for inputs, answered in zip(batches(), lengths, strict=True):
        logits = [run_program(p, inputs)[0].double().numpy() for p in (facts.exported, exported)]
        p, q = (np.exp(r) / np.exp(r).sum(-1, keepdims=True) for r in logits)
        each = (p * (np.log(p) - np.log(q))).sum(-1)
        wanted += [each[i, -1 - int(n) :].mean() for i, n in enumerate(answered)]
    assert np.allclose(found.numpy(), wanted, rtol=1e-3)


def test_an_answer_longer_than_the_text_and_one_of_a_tower_are_refused() -> None:
    facts, rows = llava().facts, 10_000
    sizes = [len(next(iter(inputs.values()))) for inputs in batches()]
    with pytest.raises(InputError, match="10000 tokens"):
        Objective(facts, replay(), list(seen()), [torch.full((size,), rows) for size in sizes])
    vit = analysed("dino")
    inputs = vit.named(vit.sample.all_inputs[0])
    with pytest.raises(UnsupportedError, match="tells one row"):
        some = [observe(vit.facts, inputs)]
        Objective(vit.facts, Replay(vit.facts.exported, [inputs]), some, [torch.ones(1).long()])


def test_a_tower_alone_is_judged_by_what_it_gives_out() -> None:
    vit = analysed("dino")
    inputs = vit.named(vit.sample.all_inputs[0])
    whole = Replay(vit.facts.exported, [inputs])
    objective = Objective(vit.facts, whole, [observe(vit.facts, inputs)])
    near, far = (
        objective.distance(apply_plan(vit.facts.exported, plan(t), find_method).exported)
        for t in ("vision:3 stride 30", "vision:1 stride 3")
    )
    assert 0 <= near["cosine"] < far["cosine"]
