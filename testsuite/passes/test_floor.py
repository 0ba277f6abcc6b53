"""The token floor has the compiled program's shapes and nothing that selects.  3 s."""

from __future__ import annotations

import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import every_input, plan, rewritten
from torch.export import ExportedProgram

from tokopt.ir.dims import operator_name
from tokopt.passes.decompose import decompose
from tokopt.passes.floor import floor_of
from tokopt.passes.validate import run_program

CASES = [
    ("llava", "vision:2 flowcut 18, decoder:1 fastv 9"),
    ("qwen", "vision:3 divprune 32, decoder:2 dart 5"),
    ("dino", "vision:1 flowcut 18, vision:3 visionzip 6"),
]
HEAVY = {"aten::scaled_dot_product_attention", "aten::linear", "aten::gelu", "aten::silu"}
SELECTING = {"aten::topk", "aten::sort", "aten::argsort", "aten::gather", "aten::cumsum"}


def heavy(exported: ExportedProgram, inserted: frozenset[str] = frozenset()) -> list[str]:
    """What the original's layers compute, and the sizes they give."""
    nodes = [n for n in exported.graph.nodes if n.op == "call_function" and n.name not in inserted]
    named = [(operator_name(node), node.meta["val"]) for node in nodes]
    return [f"{name} {list(value.shape)}" for name, value in named if name in HEAVY]


@pytest.mark.parametrize(("name", "text"), CASES)
def test_the_floor_has_the_shapes_of_the_compiled_program_and_selects_nothing(
    name: str, text: str
) -> None:
    done = rewritten(name, text)
    floor = floor_of(done.facts.exported, plan(text))
    added = frozenset[str]().union(*done.applied.inserted)
    assert heavy(floor) == heavy(done.applied.exported, added)
    assert heavy(floor) != heavy(done.facts.exported)
    original = {operator_name(n) for n in done.facts.exported.graph.nodes}
    of_floor = {operator_name(n) for n in floor.graph.nodes}
    of_compiled = {operator_name(n) for n in decompose(done.applied.exported).graph.nodes}
    assert not (of_floor - original) & SELECTING and (of_compiled - original) & SELECTING


def test_the_floor_keeps_the_first_rows_and_gives_the_originals_outputs_shorter() -> None:
    family = analysed("handvit_short")
    given, exported = every_input(family)[0], family.facts.exported
    (rows,) = run_program(exported, given)
    (found,) = run_program(floor_of(exported, plan("vision:1 stride 5")), given)
    whole = run_program(floor_of(exported, plan("vision:1 stride 36")), given)
    assert torch.equal(whole[0], rows) and found.shape == rows.shape
    assert not torch.equal(found, rows)
