"""Near-ties of a greedy order: a way through exact ties passes the gate, nothing else. 3 s."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import every_input
from torch import Tensor

from tokopt.ir.plan import Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.greedy import greedy
from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.oracle.oracle import run_oracle
from tokopt.passes.validate import Checked, judge

KEEP = 8


def halves(taps: Taps) -> Tensor:
    """Gain: 2 at the lower half of the candidates, 1 at the others, by what is left of 3 kinds."""
    number = taps.candidates.long().cumsum(1)
    kind = torch.where(number <= 20, 2.0, 1.0) + 0.0 * taps.hidden[..., 0]

    def gain(state: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
        return given[0] - state[0]

    def update(state: Sequence[Tensor], given: Sequence[Tensor], chosen: Tensor) -> list[Tensor]:
        return [state[0] + 0.01]

    return greedy(taps, gain, update, [torch.zeros(())], [kind])


TOY = Method("halves", "none", frozenset({"decoder"}), halves, lambda setting: ())


def gate(kept: Sequence[int]) -> dict[str, bool]:
    """Return what the gates say of a program that chose the visual rows of these numbers."""
    family = analysed("llava")
    given = every_input(family)[0]
    plan = Plan((Stage("decoder:1", "halves", KEEP),))
    applied = apply_plan(family.facts.exported, plan, lambda name: TOY)
    checked = Checked(family.facts, plan, applied, lambda name: TOY)
    free = run_oracle(family.facts, plan, given, checked.methods)
    alive = free.alive[0] & ~free.stages[0].candidates
    for item, visual in enumerate(free.stages[0].candidates):
        alive[item, visual.nonzero()[torch.tensor(kept), 0]] = True
    led = run_oracle(family.facts, plan, given, checked.methods, [alive])
    outputs = [led.outputs[name].nan_to_num(0.0) for name in led.outputs]
    return {v.gate: v.passed for v in judge(checked, given, outputs, [alive], free, "someone")}


def test_other_rows_of_exact_ties_are_no_fault() -> None:
    assert gate([*range(KEEP)]) == {"selection": True, "oracle": True}
    assert gate([0, 2, 4, 6, 8, 10, 12, 14]) == {"selection": True, "oracle": True}


def test_a_row_of_lower_gain_is_a_fault() -> None:
    assert gate([0, 1, 2, 3, 4, 5, 6, 25]) == {"selection": False, "oracle": True}
