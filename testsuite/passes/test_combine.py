"""Rows that are folded into others: at every site, in every layout, and seen by the gates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from testsuite.exhaustive import thinned
from testsuite.passes.analysed import Analysed, analysed
from testsuite.passes.families import every_input, plan
from torch import Tensor

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.cut import Cut
from tokopt.passes.methods.fold import rows_at, stays, written
from tokopt.passes.methods.method import Method, Placement, Taps
from tokopt.passes.methods.registry import find_method
from tokopt.passes.stream_view import StreamView
from tokopt.passes.validate import Checked, validate


def length(taps: Taps) -> Tensor:
    return taps.hidden.float().square().sum(-1)


def doubled(taps: Taps, stay: Tensor) -> Tensor:
    """Every row that stays and may go takes in the mean of all that go."""
    goes = (taps.candidates & ~stays(taps, stay)).float().unsqueeze(1)
    mean = goes @ taps.hidden / goes.sum(-1, keepdim=True).clamp_min(1)
    rows = rows_at(taps.hidden, stay)
    takes = taps.candidates.gather(1, stay).unsqueeze(-1) & (goes.sum(-1, keepdim=True) > 0)
    return torch.where(takes, rows + mean, rows)


def where(setting: Any) -> tuple[Placement, ...]:
    return (Placement(setting.layers, setting.keep),)


TOY = Method("toy", "none", frozenset({"vision", "decoder"}), length, where, combine=doubled)


def find(name: str) -> Method:
    return TOY if name == "toy" else find_method(name)


def failed(family: Analysed, text: str) -> list[str]:
    chosen = plan(text)
    applied = apply_plan(family.facts.exported, chosen, find)
    inputs = every_input(family)
    verdicts = validate(Checked(family.facts, chosen, applied, find), [inputs[-1]])
    return [v.gate for v in verdicts if not v.passed]


CASES = [
    ("llava", "vision:2 toy 9"),
    ("llava", "vision:end toy 9, decoder:1 toy 4"),
    (
        "llava_dynamic",
        "vision:1 visionzip 30, vision:end downsample 20, decoder:1 sparsevlm 12, "
        "decoder:2 sparsevlm 6, decoder:3 toy 4",
    ),
    ("llava_explicit", "decoder:0 toy 9, decoder:2 toy 4"),
    ("qwen", "decoder:1 toy 4"),
    ("dino", "vision:1 toy 18, vision:3 toy 4"),
    ("handvit", "vision:end visionzip 9"),
]


@pytest.mark.parametrize(("name", "text"), thinned(CASES, 4))
def test_a_fold_passes_every_gate(name: str, text: str) -> None:
    assert failed(analysed(name), text) == []


def test_a_fold_that_never_reaches_the_graph_fails_the_oracle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Cut, "replace_value", lambda self, short: None)
    assert failed(analysed("llava"), "vision:2 toy 9") == ["oracle"]


def test_a_fold_changes_what_the_program_computes() -> None:
    family = analysed("llava")
    inputs = every_input(family)[0]
    outputs = []
    for method in (TOY, Method("toy", "none", TOY.roles, length, where)):
        applied = apply_plan(family.facts.exported, plan("vision:2 toy 9"), lambda _, m=method: m)
        outputs.append(applied.exported.module()(*inputs.values())[0])
    assert not torch.allclose(outputs[0][0], outputs[1][0], atol=1e-3)


def test_rows_that_leave_in_groups_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="toy folds single rows, and at vision:3 rows leave"):
        failed(analysed("qwen"), "vision:3 toy 8")


@pytest.mark.parametrize(
    ("shape", "dim", "features", "rows"),
    [((2, 5, 3), 1, 2, None), ((5, 2, 3), 0, 2, None), ((5, 3), 0, 1, None), ((10, 3), 0, 1, 5)],
)
def test_a_stream_is_seen_by_items_and_put_back(
    shape: tuple[int, ...], dim: int, features: int, rows: int | None
) -> None:
    value = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    view = StreamView(dim, features, rows)
    seen = view.see(value)
    assert seen.shape == (1 if shape == (5, 3) else 2, 5, 3)
    assert seen[0, :, 0].tolist() == (
        [0, 6, 12, 18, 24] if shape[0] == 5 and shape[1] == 2 else [0, 3, 6, 9, 12]
    )
    assert torch.equal(view.put(seen, value), value)
    short = view.put(seen[:, :2], value)
    assert short.shape[dim] == (4 if rows else 2)
    again = StreamView(dim, features, 2 if rows else None)
    assert torch.equal(again.see(short), seen[:, :2])


def test_writing_rows_leaves_the_others_as_they_were() -> None:
    rows = torch.arange(12.0).reshape(2, 3, 2)
    found = written(rows, torch.tensor([[1], [2]]), torch.full((2, 1, 2), -1.0))
    assert found[0].tolist() == [[0, 1], [-1, -1], [4, 5]]
    assert found[1].tolist() == [[6, 7], [8, 9], [-1, -1]]
