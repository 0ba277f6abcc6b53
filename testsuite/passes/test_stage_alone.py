"""A stage alone computes what it computes inside the program.  2 s."""

from __future__ import annotations

import pytest
import torch
from testsuite.passes.families import every_input, rewritten

from tokopt.passes.decompose import decompose
from tokopt.passes.stage_alone import stage_alone
from tokopt.passes.validate import run_program
from tokopt.targets.signature import signature_of


@pytest.mark.parametrize("number", [0, 1])
def test_the_rows_it_keeps_are_those_of_the_whole_program(number: int) -> None:
    done = rewritten("llava", "vision:2 flowcut 18, decoder:1 dart 9")
    given = done_inputs()
    exported = decompose(done.applied.exported)
    names = [spec.name for spec in signature_of(exported).outputs]
    outputs = dict(zip(names, run_program(exported, given), strict=True))
    kept = list(outputs.values())[len(outputs) - 4 :][2 * number]
    alone, values = stage_alone(done.applied, number, given)
    found = run_program(alone, values)
    assert any(torch.equal(value, kept) for value in found)
    assert len(alone.graph.nodes) < len(done.applied.exported.graph.nodes) / 2


def done_inputs() -> dict[str, torch.Tensor]:
    from testsuite.passes.analysed import analysed

    return every_input(analysed("llava"))[0]
