"""Rows that skip some layers and come back: every gate passes, and a wrong way back does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, plan, verdicts
from testsuite.passes.methods.drawn_taps import drawn_taps
from testsuite.passes.methods.test_fold_laws import chosen

from tokopt.ir.errors import InputError, TokoptError, UnsupportedError
from tokopt.ir.plan import Plan, Stage
from tokopt.passes import slow_path
from tokopt.passes.budget import tower_rows, visual_rows
from tokopt.passes.macs import count_macs, predict_macs
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.methods.representative import entering, last_chosen, returned


def failed(name: str, text: str) -> set[str]:
    family = analysed(name)
    found = verdicts(checked(family, plan(text)), every_input(family)[:1])
    return {verdict.gate for verdict in found if not verdict.passed}


CASES = [
    ("dino", "vision:1>vision:3 vtc_cls 12"),
    ("llava", "vision:1>vision:end divprune 9, decoder:2 fastv 5"),
    ("llava", "vision:0>vision:2 stride 7"),
    ("flat", "vision:1>vision:end random 5"),
]


@pytest.mark.parametrize(("name", "text"), CASES)
def test_rows_that_come_back_pass_every_gate(name: str, text: str) -> None:
    assert failed(name, text) == set()


def test_a_way_back_without_the_gain_fails_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    def still(before, entered, left, stay, place):  # type: ignore[no-untyped-def]
        return returned(before, left, left, stay, place)

    monkeypatch.setattr(slow_path, "returned", still)
    assert failed(*CASES[0]) == {"identity", "oracle"}


def test_another_representative_fails_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(scores, candidates, stay):  # type: ignore[no-untyped-def]
        return (last_chosen(scores, candidates, stay) - 1).clamp_min(1)

    monkeypatch.setattr(slow_path, "last_chosen", first)
    assert failed(*CASES[0]) == {"oracle"}


@pytest.mark.parametrize("keep", [1, 3, 8])
def test_the_last_chosen_row_is_the_mean_of_what_it_stands_for(keep: int) -> None:
    taps = drawn_taps(rows=30, keep=keep)
    stay, scored = chosen("vtc_cls", taps), METHODS["vtc_cls"].score(taps)
    place = last_chosen(scored, taps.candidates, stay)
    found = entering(taps.hidden, taps.candidates, stay, place).numpy()
    scores = scored.numpy()
    for item, rows in enumerate(stay.tolist()):
        x, free = taps.hidden[item].numpy(), taps.candidates[item].tolist()
        stands = min((row for row in rows if free[row]), key=lambda row: scores[item, row])
        away = [row for row in range(30) if free[row] and row not in rows]
        expected = x[rows].copy()
        expected[rows.index(stands)] = x[[stands, *away]].mean(0)
        np.testing.assert_allclose(found[item], expected, rtol=1e-5, atol=1e-6)


def test_of_equal_scores_the_highest_row_is_last() -> None:
    stay, free = torch.tensor([[0, 2, 3, 5]]), torch.tensor([[False, *[True] * 5]])
    assert last_chosen(torch.zeros(1, 6), free, stay).tolist() == [[3]]
    scores = torch.tensor([[-9.0, 1, 0, 1, 1, 2]])
    assert last_chosen(scores, free, stay).tolist() == [[1]]


def test_rows_and_work_are_counted_between_the_two_sites() -> None:
    family, text = analysed("dino"), plan(CASES[0][1])
    assert visual_rows(family.facts, text) == (36, 12, 12, 36)
    inputs = every_input(family)[0]
    predicted = predict_macs(family.facts, text, inputs)
    counted = count_macs(checked(family, text).applied.exported, inputs)
    original = count_macs(family.facts.exported, inputs)
    assert predicted <= counted < predicted + (original - predicted) / 10
    llava, beside = analysed("llava"), plan(CASES[1][1])
    assert tower_rows(llava.facts, beside)["vision"][1:] == (9, 9)
    assert visual_rows(llava.facts, beside) == (36, 36, 5, 5)


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        ("dino", "vision:2>vision:2 stride 9", InputError, "a site behind vision:2"),
        ("llava", "vision:1>decoder:2 stride 9", InputError, "a site behind vision:1"),
        ("llava", "decoder:1>decoder:3 stride 9", UnsupportedError, "cannot come back"),
        ("dino", "vision:1>vision:3 visionzip 9", UnsupportedError, "folds rows itself"),
        ("dino", "vision:1>vision:2 stride 9, vision:3 stride 4", UnsupportedError, "other stages"),
    ],
)
def test_what_cannot_come_back_is_refused(
    name: str, text: str, kind: type[TokoptError], message: str
) -> None:
    with pytest.raises(kind) as error:
        checked(analysed(name), plan(text))
    assert message in str(error.value)


def test_a_plan_says_where_rows_come_back() -> None:
    wanted = Plan((Stage("vision:1", "stride", 9, until="vision:3"),))
    assert 'keep = 9\nuntil = "vision:3"\n' in wanted.to_toml()
    assert Plan.from_toml(wanted.to_toml()) == wanted
