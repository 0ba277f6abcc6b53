"""Prompts of one batch padded on either side: a padded row is no relay, and nothing is lost.

A prompt keeps the same visual rows, and gives the same logits, alone and in a padded batch.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from testsuite.exhaustive import thinned
from testsuite.passes import padded_llava
from testsuite.passes.analysed import analysed
from testsuite.passes.families import failures, plan
from testsuite.passes.padded_llava import VISUAL
from torch import Tensor, fx

from tokopt.ir.facts import analyse
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.decompose import decompose
from tokopt.passes.last_row import last_by_mask, last_by_probabilities
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.validate import Checked, run_program
from tokopt.targets.registry import find

pytestmark = pytest.mark.slow

BOTH = "vision:end vtc_cls 18, decoder:1 fastv 12, decoder:2 flowcut 4"
SIDES = ("left", "right")


@functools.cache
def made(attention: str, *, free: bool = True) -> Checked:
    facts = analyse(normalize(padded_llava.exported(attention, free=free)))
    chosen = plan(BOTH)
    return Checked(facts, chosen, apply_plan(facts.exported, chosen, find_method), find_method)


def ran(done: Checked, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the logits, and per stage the visual rows kept, counted from the image's first."""
    logits, *trace = run_program(done.applied.exported, inputs)
    visual = inputs["input_ids"] == padded_llava.IMAGE_TOKEN
    first = visual.int().argmax(1, keepdim=True)
    kept = []
    for stage, rows in zip(done.plan.stages, trace[::2], strict=True):
        if stage.site.startswith("decoder"):
            number = rows - first
            inside = (number >= 0) & (number < VISUAL)
            assert bool((inside.sum(1) == stage.keep).all())
            rows = number[inside].reshape(len(rows), stage.keep)
        kept.append(rows)
    return logits, kept


@pytest.mark.parametrize("attention", thinned(["sdpa", "eager"], 2))
def test_a_padded_batch_passes_every_gate(attention: str) -> None:
    assert failures(made(attention), [padded_llava.batch(side) for side in SIDES]) == ""


@pytest.mark.parametrize("attention", thinned(["sdpa", "eager"], 2))
def test_a_prompt_keeps_in_a_padded_batch_what_it_keeps_alone(attention: str) -> None:
    done = made(attention)
    batches = {side: ran(done, padded_llava.batch(side)) for side in SIDES}
    for item, alone in enumerate(padded_llava.items()):
        wanted, rows = ran(done, alone)
        length = wanted.shape[1]
        for side, (logits, kept) in batches.items():
            for got, single in zip(kept, rows, strict=True):
                assert torch.equal(got[item], single[0])
            shown = logits[item, -length:] if side == "left" else logits[item, :length]
            torch.testing.assert_close(shown, wanted[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", SIDES)
def test_padding_is_text_and_stays(side: str) -> None:
    inputs = padded_llava.batch(side)
    rows = run_program(made("sdpa").applied.exported, inputs)[-2]
    text = inputs["input_ids"] != padded_llava.IMAGE_TOKEN
    for item in range(3):
        assert set(text[item].nonzero().flatten().tolist()) <= set(rows[item].tolist())


def test_onnx_runtime_keeps_the_same_rows_of_a_padded_batch(tmp_path: Path) -> None:
    done = made("sdpa", free=False)  # free sizes lower slowly, and are lowered elsewhere
    program = decompose(done.applied.exported)
    names = ["logits", *(f"trace.{i}.{w}" for i in range(3) for w in ("kept", "scores"))]
    target = find("onnxruntime-cpu")
    target.lower(program, tmp_path, names)
    runner = target.open(tmp_path)
    for side in ("left", "right"):
        inputs = padded_llava.batch(side)
        wanted = dict(zip(names, run_program(program, inputs), strict=True))
        got = runner(inputs)
        for name in names:
            torch.testing.assert_close(got[name], wanted[name], atol=1e-4, rtol=1e-4)


def test_without_a_mask_that_is_data_nothing_is_asked() -> None:
    """The mask of a program without mask input is made of sizes: no search for the last row."""
    facts = analysed("llava_dynamic").facts
    applied = apply_plan(facts.exported, plan("decoder:1 fastv 9"), find_method)
    added = {node.target for node in applied.exported.graph.nodes if isinstance(node, fx.Node)}
    assert torch.ops.aten.amax.default not in added
    padded = made("sdpa").applied.exported
    assert any(node.target is torch.ops.aten.amax.default for node in padded.graph.nodes)


def test_the_last_row_is_the_last_that_reads_itself() -> None:
    keys = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    mask = (torch.ones(5, 5).tril().bool() & keys[:, None]).unsqueeze(1)
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    wanted = torch.tensor([2, 4, 4])  # where all is padding, the last of all
    assert torch.equal(last_by_mask(mask).squeeze(1), wanted)
    assert torch.equal(last_by_mask(added).squeeze(1), wanted)
    assert torch.equal(last_by_mask(keys[:, None, None]).squeeze(1), wanted)
    probabilities = (added + torch.randn(3, 2, 5, 5)).softmax(-1)
    assert torch.equal(last_by_probabilities(probabilities[:2]), wanted[:2])
