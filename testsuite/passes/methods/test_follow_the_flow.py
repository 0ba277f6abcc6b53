"""Follow the Flow: words of a text encoder, in numpy, in programs, and nowhere else. About 10 s."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from testsuite.passes import text_encoders
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, failures, plan
from testsuite.passes.methods.drawn_taps import drawn_taps
from torch import Tensor

import tokopt
from tokopt.cli.main import main
from tokopt.ir.errors import InputError, TokoptError, UnsupportedError
from tokopt.ir.memory import with_memory
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget import spent, visual_rows
from tokopt.passes.default_plan import default_plan
from tokopt.passes.fit import fit
from tokopt.passes.methods.follow_the_flow import METHOD, score
from tokopt.passes.methods.method import Taps
from tokopt.passes.methods.registry import METHODS, find_method
from tokopt.passes.search.space import Space
from tokopt.passes.validate import run_program

KEEP = 8


def taps(hidden: Tensor, keep: int = 4, wanted: Tensor | None = None, **more: Tensor) -> Taps:
    batch, rows = hidden.shape[:2]
    drawn = drawn_taps("text", batch=batch, rows=rows, keep=keep)
    state = {} if wanted is None else {"wanted": wanted}
    return dataclasses.replace(drawn, hidden=hidden, state=state, **more)


def kept(found: Tensor, keep: int) -> list[int]:
    order = sorted(range(found.shape[1]), key=lambda row: (-float(found[0, row]), row))
    return sorted(order[:keep])


def test_rows_are_ranked_by_what_padding_in_their_place_would_change_worked_by_hand() -> None:
    """Padding is (1, 0); rows at distances 0, 3, 5 and 4 from it between the first and the end."""
    rows = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [4.0, 0.0], [4.0, 4.0], [1.0, 4.0], [1.0, 0.0]]])
    picked = torch.tensor([[False, False, False, False, True, False]])
    found = score(taps(rows, picked=picked))
    expected = torch.tensor([[4.0, 0.0, 3 / 4, 5 / 6, 4.0, 0.0]])
    torch.testing.assert_close(found, expected)
    assert kept(found, 3) == [0, 3, 4] and kept(found, 4) == [0, 2, 3, 4]
    wanted = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    found = score(taps(rows, picked=picked, wanted=wanted))
    assert kept(found, 3) == [0, 1, 4] and kept(found, 4) == [0, 1, 3, 4]


def test_of_k_rows_those_stay_whose_loss_in_squares_is_least() -> None:
    """Asked of every choice there is, in numpy."""
    hidden = torch.randn(1, 8, 5, generator=torch.Generator().manual_seed(3))
    rows = hidden[0].double().numpy()
    losses = {
        choice: sum(float(np.sum((rows[i] - rows[7]) ** 2)) for i in set(range(8)) - {*choice})
        for choice in itertools.combinations(range(8), 4)
        if {0, 7} <= set(choice)
    }
    best = min(losses, key=lambda choice: losses[choice])
    assert kept(score(taps(hidden)), 4) == [*best]


def test_the_first_row_and_the_end_stay_whatever_is_wanted() -> None:
    hidden = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(4))
    everything = torch.ones(2, 9)
    for picked in (None, torch.arange(9).expand(2, 9) == torch.tensor([[3], [5]])):
        more = {} if picked is None else {"picked": picked}
        found = score(taps(hidden, wanted=everything, **more))
        ends = [8, 8] if picked is None else [3, 5]
        for item, end in enumerate(ends):
            assert set(kept(found[item : item + 1], 2)) == {0, end}
    with pytest.raises(UnsupportedError, match="keep = 1"):
        score(taps(hidden, keep=1))


@pytest.mark.parametrize("outputs", ["full", "kept"])
@pytest.mark.parametrize("name", ["clip_text", "t5_encoder", "t5_reader"])
def test_every_gate_passes_on_encoders_alone_and_with_their_reader(name: str, outputs: str) -> None:
    family = analysed(name)
    chosen = plan("text:end follow_the_flow 8", outputs=outputs)  # type: ignore[arg-type]
    assert failures(checked(family, chosen), every_input(family)) == ""


def run(name: str, wanted: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Return the original's outputs and those of the rewritten program, kept rows behind them."""
    family = analysed(name)
    inputs = every_input(family)[0]
    done = checked(family, plan(f"text:end follow_the_flow {KEEP}", outputs="kept")).applied
    given = with_memory(done.memory, inputs)
    given |= {} if wanted is None else {"state_0_wanted": wanted}
    return run_program(family.facts.exported, inputs), run_program(done.exported, given)


def test_clip_keeps_the_row_it_reads_at_the_end_of_the_text() -> None:
    (rows, end), (short, pooled, numbers, *_) = run("clip_text")
    assert torch.equal(pooled, end)
    for item, at in enumerate(text_encoders.LENGTHS):
        assert {0, at} <= set(numbers[item].tolist())
        assert torch.equal(short[item], rows[item, numbers[item]])


def test_t5_keeps_the_last_word_in_front_of_padding() -> None:
    _, (_, numbers, *_) = run("t5_encoder")
    assert all({0, at} <= set(numbers[i].tolist()) for i, at in enumerate(text_encoders.LENGTHS))


def test_a_caller_says_which_words_and_nothing_is_remembered_of_it() -> None:
    wanted = torch.zeros(2, text_encoders.ROWS)
    wanted[0, [2, 5, 6]], wanted[1, [1, 3, 11]] = 1.0, 1.0
    _, (_, _, numbers, _, after) = run("clip_text", wanted)
    assert {2, 5, 6} <= set(numbers[0].tolist()) and {1, 3, 11} <= set(numbers[1].tolist())
    assert after.shape == wanted.shape and not after.any()


def test_a_reader_attends_to_few_words_and_the_budget_is_their_share() -> None:
    family = analysed("t5_reader")
    facts = family.facts
    chosen = plan(f"text:end follow_the_flow {KEEP}")
    assert facts.consumer.stack.cross and facts.consumer.role.startswith("text")
    assert visual_rows(facts, chosen) == (KEEP,) * len(facts.consumer.stack.layers)
    lone = analysed("clip_text").facts
    assert visual_rows(lone, chosen) == (KEEP,)
    for own in (facts, lone):
        assert float(spent(own, chosen)) == KEEP / text_encoders.ROWS
        fitted = fit(own, METHOD, 0.4)
        assert fitted.plan.stages == (Stage("text:end", "follow_the_flow", KEEP),)
    nodes = checked(family, chosen).applied.exported.graph.nodes
    read = [n.args[1].meta["val"].shape[-2] for n in nodes if "scaled_dot" in str(n.target)]
    read += [n.meta["val"].shape[-1] for n in nodes if "softmax" in str(n.target)]
    assert read.count(KEEP) == len(facts.consumer.stack.layers)


@pytest.mark.parametrize("name", ["clip_text", "t5_encoder", "t5_reader"])
def test_nothing_else_drops_words(name: str) -> None:
    """No default, no other method, no search: a method of text must be named."""
    facts = analysed(name).facts
    with pytest.raises(UnsupportedError, match="only by a method that is named"):
        default_plan(facts, 0.5)
    for method in METHODS.values():
        if "text" not in method.roles:
            with pytest.raises(UnsupportedError):
                fit(facts, method, 0.5)
            with pytest.raises(InputError, match="cannot be placed at text:end"):
                apply_plan(facts.exported, Plan((Stage("text:end", method.name, 8),)), find_method)
    others = {n: m for n, m in METHODS.items() if "text" not in m.roles}
    with pytest.raises(UnsupportedError, match="no method can be placed anywhere"):
        Space(facts, others, Fraction(1, 2))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("llava", "decoder:1 follow_the_flow 8", "cannot be placed at decoder:1"),
        ("llava", "vision:end follow_the_flow 8", "cannot be placed at vision:end"),
        ("clip_text", "text:end follow_the_flow 1", "keep = 1"),
    ],
)
def test_what_it_cannot_do_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(TokoptError, match=message):
        apply_plan(analysed(name).facts.exported, plan(text), find_method)


def test_an_artifact_takes_the_words_that_are_wanted(tmp_path: Path) -> None:
    sample = text_encoders.clip()
    torch.export.save(sample.exported, tmp_path / "clip.pt2")
    line = ["compile", str(tmp_path / "clip.pt2"), "--budget", "0.4", "-o", str(tmp_path / "built")]
    assert main(line) == 3
    assert main([*line, "--method", "follow_the_flow", "--outputs", "kept"]) == 0
    model, (ids,) = tokopt.load(tmp_path / "built"), sample.inputs
    wanted = torch.zeros(2, text_encoders.ROWS)
    wanted[:, [3, 4, 7]] = 1.0
    with_words = model({"input_ids": ids, "state_0_wanted": wanted}, trace=True)
    assert with_words["output_0"].shape[1] == math.floor(0.4 * text_encoders.ROWS)
    assert all({3, 4, 7} <= set(rows) for rows in with_words["trace.0.kept"].tolist())
    first, again = (model({"input_ids": ids}, trace=True) for _ in range(2))
    assert torch.equal(first["trace.0.kept"], again["trace.0.kept"])
    assert not torch.equal(first["trace.0.kept"], with_words["trace.0.kept"])
