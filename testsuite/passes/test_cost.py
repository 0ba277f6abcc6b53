"""What stages cost, worked by hand from the calls they insert; and that it grows as methods say.

12 s.
"""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from testsuite.exhaustive import thinned
from testsuite.passes.analysed import analysed
from testsuite.passes.families import every_input, rewritten
from testsuite.passes.methods.drawn_taps import drawn_taps
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tokopt.passes.budget_report import Work, report_work
from tokopt.passes.cost import Cost, count_cost
from tokopt.passes.macs import count_macs, predict_macs
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.oracle.sizes import Sizes


def work(name: str, text: str) -> Work:
    done = rewritten(name, text)
    return report_work(done.facts.exported, done.applied, every_input(analysed(name))[0])


def test_a_row_of_attention_that_the_graph_spells_out_costs_its_mean_and_the_choice() -> None:
    """37 rows, 4 heads, 36 candidates of which 18 stay, 48 features; fp32, indices of 8 bytes."""
    found = work("handvit_short", "vision:2 vtc_cls 18")
    mean, summed, sort, behind_the_class_row = 4 * 37, 37, 36 * 6, 2 * 18
    moved = 2 * 37 * 4 + 2 * (2 * 19 * 8) + 2 * 19 * 48 * 4  # the row; indices; the stream's rows
    made = 2 * 8 + 36
    computed = (148 + 37) * 4 + 2 * 37 * 4 + (36 * 4 + 36 + 18 * 8) + 2 * (2 * 18 * 8)
    flops = mean + summed + sort + behind_the_class_row
    assert found.selector == (Cost(flops, moved + made + computed),)


def test_the_products_of_a_greedy_choice_are_those_of_its_steps() -> None:
    """36 patches and a class row of 48: all pairs in blocks of 64 rows, 18 steps of one row."""
    done = rewritten("handvit_short", "vision:2 divprune 18")
    given = every_input(analysed("handvit_short"))[0]
    exported, (added,) = done.applied.exported, done.applied.inserted
    blocks = 37 // 64 + 2
    products = (blocks * 64 + 18) * 37 * 48
    assert count_macs(exported, given) - count_macs(exported, given, added) == products
    (cost,) = work("handvit_short", "vision:2 divprune 18").selector
    assert 2 * products < cost.flops < 3 * products


def test_what_is_saved_and_the_share_of_the_selector_are_counted_from_the_graphs() -> None:
    """One layer of three on 19 of 37 rows: what test_shapes_shrink works out by hand."""
    found = work("handvit_short", "vision:2 vtc_cls 18")
    rows, pairs = 48 * 8 * 48, 2 * 48
    assert found.saved == 2 * ((37 - 19) * rows + (37**2 - 19**2) * pairs)
    assert found.selector_share == 437 / found.saved
    assert found.total == (found.original - found.saved + 437) / found.original


def test_keeping_all_saves_nothing_and_the_drop_at_the_merge_is_charged_to_the_tower() -> None:
    whole = work("handvit_short", "vision:2 vtc_cls 36")
    assert whole.selector_share is None and whole.total > 1
    done = rewritten("llava", "vision:end vtc_cls 9, decoder:2 fastv 4")
    inside, behind = done.applied.inserted
    assert not inside & behind
    ours = {n.name for n in done.applied.exported.graph.nodes if "tokopt" in str(n.target)}
    assert ours and ours <= inside | behind
    found = work("llava", "vision:end vtc_cls 9, decoder:2 fastv 4")
    assert found.left == 2 * predict_macs(done.facts, done.plan, every_input(analysed("llava"))[0])


SIZES = {
    "O(N)": (2.6, 1.2),
    "O(N·K)": (2.6, 2.6),
    "O(N·K²)": (2.6, 4.6),
    "O(N²)": (5.6, 2.6),
    "O(N²·K)": (5.6, 2.6),
    "O(N³)": (8.6, 1.2),
}
"""The most that operations may grow by: with twice as many rows, with twice as many that stay."""


@pytest.mark.parametrize("name", thinned(METHODS, 3))
def test_operations_grow_as_the_method_says(name: str) -> None:
    rows, kept = SIZES[METHODS[name].cost]
    small = operations(name, 256, 64)
    assert operations(name, 512, 64) <= rows * small
    assert operations(name, 256, 128) <= kept * small


@pytest.mark.parametrize(("name", "rows"), [("fopru", 3.0), ("tokencut", 6.0), ("divprune", 3.0)])
def test_what_reads_pairs_grows_faster_than_rows(name: str, rows: float) -> None:
    assert operations(name, 512, 64) > rows * operations(name, 256, 64)


@functools.cache
def operations(name: str, rows: int, keep: int) -> int:
    """Return the operations of a score and a fold in its first role, traced without numbers."""
    method = METHODS[name]
    role = sorted(method.roles)[-1]
    taps = drawn_taps(role, batch=1, rows=rows, layers=2, keep=keep)

    def traced(hidden: Tensor, stay: Tensor, *operands: Tensor) -> list[Tensor]:
        own = dataclasses.replace(taps, hidden=hidden, layers=taps.layers)
        made = [method.score(own)]
        return [*made, *([method.combine(own, stay)] if method.combine else [])]

    stay = torch.arange(keep).unsqueeze(0)
    graph = make_fx(traced, tracing_mode="fake", _allow_non_fake_inputs=True)(taps.hidden, stay)
    return count_cost(graph.graph.nodes, Sizes.__new__(Sizes)).flops
