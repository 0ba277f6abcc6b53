"""Rows that leave in whole groups: which, why, and that they do as a group (takes 40 s)."""

from __future__ import annotations

import functools

import pytest
import torch
from testsuite.passes.gates import facts_of, failures
from testsuite.passes.grouped_vlm import HIGH, JOINS, WIDE, build, classifier
from torch import Tensor

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts
from tokopt.ir.plan import Plan, Stage
from tokopt.ir.sites import Site
from tokopt.passes import grouping, stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget import visual_rows
from tokopt.passes.methods.registry import find_method

BLOCKS = [[r for r in range(HIGH * WIDE) if r // WIDE // 2 == i and r % WIDE // 2 == j]
          for i in range(2) for j in range(4)]  # fmt: skip
"""The 2x2 blocks of the grid, by hand."""


@functools.cache
def facts(how: str, *windows: bool, shift: int = 0) -> Facts:
    return facts_of(build(how, windows or (False, False), shift))


def site(found: Facts, name: str) -> Site:
    return found.find_site(name)[1]


def members(place: Site) -> list[list[int]]:
    numbers = place.groups().tolist()
    return [[r for r, n in enumerate(numbers) if n == g] for g in range(max(numbers) + 1)]


@pytest.mark.parametrize("how", JOINS)
def test_the_group_is_the_least_that_the_join_lets_go(how: str) -> None:
    for name in ("vision:0", "vision:1", "vision:end"):
        place = site(facts(how), name)
        assert place.legal and place.group == 4 and place.reason is not None
        if how == "in order":
            assert place.whole == (4,) and not place.scattered
            assert members(place) == [[*range(r, r + 4)] for r in range(0, 32, 4)]
        else:
            assert place.whole == (2, 2) and place.scattered
            assert members(place) == BLOCKS


@pytest.mark.parametrize("how", JOINS)
def test_gates_pass_with_groups_dropped_in_the_tower_and_rows_behind_it(how: str) -> None:
    sample = build(how)
    stages = [
        Stage("vision:0", "random", 24),
        Stage("vision:1", "flowcut", 8),
        Stage("decoder:0", "stride", 1),
    ]
    assert failures(facts(how), stages, sample.inputs) == []
    if how in ("in order", "pool"):
        assert failures(facts(how), [Stage("vision:end", "flowcut", 12)], sample.inputs) == []


def test_one_dynamic_program_drops_groups_in_any_batch() -> None:
    sample = build("slices", dynamic=True)
    stages = [Stage("vision:0", "random", 24), Stage("vision:1", "flowcut", 8)]
    for inputs in sample.all_inputs:
        assert failures(facts_of(sample), stages, inputs) == []


def test_a_budget_counts_what_arrives_of_groups() -> None:
    plan = Plan((Stage("vision:1", "stride", 12),))
    assert visual_rows(facts("pool"), plan) == (3,)


@pytest.mark.parametrize("method", ["stride", "random"])
def test_controls_draw_among_groups_that_are_scattered(method: str) -> None:
    """Every member of a group gets its group's score, so that the mean is one of them."""
    from tokopt.passes.methods.method import Taps

    rows = torch.ones(1, 32, dtype=torch.bool)
    groups = site(facts("pool"), "vision:1").groups().unsqueeze(0)
    taps = Taps([], 2, rows, torch.zeros(1, 32, 1), None, None, 8, 0, 4, groups, count=32)
    score = find_method(method).score(taps)[0]
    assert all(len(set(score[block].tolist())) == 1 for block in BLOCKS)
    assert len(set(score.tolist())) == (2 if method == "stride" else 8)


def test_whole_windows_may_leave_where_windows_do_not_shift() -> None:
    """Windows of 2x4: the join keeps 2x2 blocks together, the attention the whole window."""
    found = facts("shuffle", True, False)
    assert site(found, "vision:0").whole == (2, 4) and site(found, "vision:0").group == 8
    assert site(found, "vision:1").group == 4
    assert [layer.windowed for layer in found.stacks[0].stack.layers] == [True, False]
    sample = build("shuffle", (True, False))
    assert failures(found, [Stage("vision:0", "random", 16)], sample.inputs) == []
    with pytest.raises(UnsupportedError, match="groups of 8 at vision:0 and of 4 at vision:1"):
        stages = (Stage("vision:0", "stride", 16), Stage("vision:1", "stride", 8))
        apply_plan(found.exported, Plan(stages), find_method)


def test_stages_behind_one_another_drop_whole_windows() -> None:
    sample = build("pool", (True, True))
    stages = [Stage("vision:0", "random", 24), Stage("vision:1", "random", 8)]
    assert failures(facts("pool", True, True), stages, sample.inputs) == []


def test_shifted_windows_are_a_barrier_that_names_the_attention() -> None:
    found = facts("shuffle", True, True, shift=1)
    assert [layer.windowed for layer in found.stacks[0].stack.layers] == [True, True]
    barrier = site(found, "vision:1").barrier
    assert barrier is not None and "scaled_dot_product_attention" in str(barrier)
    assert site(found, "vision:0").barrier is not None
    assert site(found, "vision:end").group == 4


def test_behind_shifted_windows_single_rows_may_leave_a_pool_over_all() -> None:
    sample = classifier(join=False)
    found = facts_of(sample)
    assert [place.legal for place in found.stacks[0].sites] == [False, False, True]
    assert failures(found, [Stage("vision:end", "stride", 5)], sample.inputs) == []


def test_an_output_by_groups_takes_groups_of_neighbours() -> None:
    """Holes would be filled with what the head makes of zeros: blocks cannot leave, halves can."""
    sample = classifier(join=True)
    found = facts_of(sample)
    place = site(found, "vision:end")
    assert place.legal and place.group == 16 and not place.scattered
    assert failures(found, [Stage("vision:end", "stride", 16)], sample.inputs) == []


def test_a_wrong_entry_of_the_table_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    original = grouping.group_table

    def swapped(place: Site, values: Tensor, origin: Tensor | None) -> Tensor:
        table = original(place, values, origin)
        return torch.cat([table[:, :, :-1], table[:, :, -1:].roll(1, 1)], -1)

    monkeypatch.setattr(stage, "group_table", swapped)
    failed = failures(facts("pool"), [Stage("vision:1", "flowcut", 8)], build("pool").inputs)
    assert any(line.startswith("selection") and "torn apart" in line for line in failed)


def test_a_group_judged_by_one_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(values: Tensor, table: Tensor) -> Tensor:
        return values.gather(1, table[:, :, 0])

    monkeypatch.setattr(stage, "group_means", first)
    failed = failures(facts("pool"), [Stage("vision:1", "flowcut", 8)], build("pool").inputs)
    assert any(line.startswith("selection") for line in failed)
