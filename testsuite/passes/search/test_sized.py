"""A program for the sizes that all batches have: the same sites, plans and values."""

from __future__ import annotations

from fractions import Fraction

import torch
from testsuite.passes.search.searched import batches, llava

from tokopt.ir.plan import Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.run_program import run_program
from tokopt.passes.search.search import Effort, Search
from tokopt.passes.search.sized import sized

PLAN = Plan((Stage("decoder:2", "fastv", 6),))


def test_a_plan_of_the_sized_program_gives_what_it_gives_of_the_program() -> None:
    facts, batch = llava().facts, batches()[0]
    fixed = sized(facts, [batch])
    assert fixed is not facts
    inputs = {node.name: node for node in fixed.exported.graph.find_nodes(op="placeholder")}
    for name, value in batch.items():
        assert all(type(size) is int for size in inputs[name].meta["val"].shape)
        assert inputs[name].meta["val"].shape == value.shape
    short, wanted = (
        run_program(apply_plan(each.exported, PLAN, find_method).exported, batch)[0]
        for each in (fixed, facts)
    )
    assert torch.equal(short, wanted)


def test_a_size_in_which_batches_differ_stays_free() -> None:
    facts, first = llava().facts, batches()[0]
    other = {name: torch.cat([value, value]) for name, value in first.items()}
    fixed = sized(facts, [first, other])
    nodes = {node.name: node for node in fixed.exported.graph.find_nodes(op="placeholder")}
    for name, value in first.items():
        items, *rest = nodes[name].meta["val"].shape
        assert not isinstance(items, int) and tuple(rest) == tuple(value.shape[1:])
    assert sized(facts, []) is facts


def test_what_only_the_samples_sizes_allow_is_refused() -> None:
    methods = {name: find_method(name) for name in ("stc", "stride")}
    search = Search(llava().facts, batches(), Fraction(1, 4), methods)
    found = search.run(Effort(trials=0, draws=1, fresh=1))
    why = {judged.origin: judged.why for judged in found.judged}
    assert why["stride"] == "" and "their number is free" in why["stc"]
