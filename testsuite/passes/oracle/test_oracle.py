"""The oracle against twins in which rows are removed by hand, and what it refuses."""

from __future__ import annotations

import functools

import pytest
import torch
from testsuite.passes.oracle.remover import Remover
from testsuite.passes.oracle.sample_methods import METHODS
from testsuite.passes.oracle.tiny_block import Form
from testsuite.passes.oracle.tiny_vit import CHANNELS, TinyVit
from testsuite.passes.oracle.tiny_vlm import IMAGE, TinyVlm
from torch import Tensor

from tokopt.ir.facts import Facts, analyse
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.normalize import normalize
from tokopt.passes.oracle.oracle import OracleResult, run_oracle

PATCHES, PREFIX = 8, 2


def analysed(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Facts:
    with torch.no_grad():
        return analyse(normalize(torch.export.export(module.eval(), inputs, strict=False)))


def run(facts: Facts, stages: list[Stage], *inputs: Tensor, forced=None) -> OracleResult:  # type: ignore[no-untyped-def]
    names = [s.arg.name for s in facts.exported.graph_signature.input_specs if not s.target]
    given = dict(zip(names, inputs, strict=True))
    return run_oracle(facts, Plan(tuple(stages)), given, METHODS.__getitem__, forced)


def same(found: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(found, want, equal_nan=True, rtol=1e-4, atol=1e-5)


def check_rows(found: Tensor, want: Tensor, places: Tensor) -> None:
    """``found [B, N, C]`` must be ``want [B, K, C]`` at ``places`` and NaN elsewhere."""
    full = torch.full_like(found, torch.nan)
    index = places[..., None].expand(-1, -1, found.shape[-1])
    same(found, full.scatter(1, index, want))


FORMS = {
    "fused": Form(),
    "spelled out": Form(attention="spelled"),
    "bmm": Form(attention="bmm", bias=True),
    "einsum": Form(attention="einsum"),
    "grouped heads": Form(heads=4, kv_heads=2, rotary=True),
    "grouped heads spelled out": Form(attention="spelled", heads=4, kv_heads=2),
    "causal": Form(causal="flag", rotary=True),
    "causal mask": Form(causal="mask"),
    "causal mask spelled out": Form(attention="spelled", causal="mask", bias=True),
    "finite mask": Form(attention="spelled", causal="finite"),
    "batch second": Form(layout="NBH", rotary=True),
    "batch second spelled out": Form(layout="NBH", attention="bmm"),
    "no batch": Form(layout="NH", attention="spelled"),
    "no batch fused": Form(layout="NH", bias=True),
}

PLANS = {
    "one": [("vision:1", "length", 5)],
    "end": [("vision:end", "relay", 3)],
    "three of two methods": [
        ("vision:1", "relay", 6), ("vision:2", "unlike", 5), ("vision:end", "relay", 2)],
}  # fmt: skip


@functools.cache
def vit(name: str, batch: int, prefix: int) -> tuple[TinyVit, Facts, Tensor]:
    torch.manual_seed(0)
    form = FORMS[name]
    shape = (PATCHES, CHANNELS) if form.layout == "NH" else (batch, PATCHES, CHANNELS)
    model = TinyVit(form, patches=PATCHES, prefix=prefix).eval().requires_grad_(False)
    return model, analysed(model, (torch.randn(shape),)), torch.randn(shape)


@pytest.mark.parametrize("name", FORMS)
def test_the_rows_that_stay_are_those_of_a_vit_without_the_others(name: str) -> None:
    model, facts, patches = vit(name, 2, PREFIX)
    for chosen in PLANS.values():
        stages = [Stage(*stage) for stage in chosen]
        remover = Remover(stages, 3, lambda item, place: place >= PREFIX)
        rows, mean, first, places = model.shortened(patches, remover)
        result = run(facts, stages, patches)
        for alive, left in zip(result.alive, remover.left, strict=True):
            assert torch.equal(alive, torch.zeros_like(alive).scatter(1, left, True))
        found_rows, found_mean, found_first = result.outputs.values()
        if FORMS[name].layout != "BNH":
            flat = FORMS[name].layout == "NH"
            found_rows = found_rows[None] if flat else found_rows.transpose(0, 1)
        check_rows(found_rows, rows, places)
        same(found_mean.view_as(mean), mean)
        same(found_first.view_as(first), first)


def test_without_learned_rows_every_row_may_go() -> None:
    model, facts, patches = vit("fused", 2, 0)
    stages = [Stage("vision:1", "length", 1)]
    rows, mean, _, places = model.shortened(patches, Remover(stages, 3, lambda item, place: True))
    result = run(facts, stages, patches)
    check_rows(next(iter(result.outputs.values())), rows, places)
    same(list(result.outputs.values())[1], mean)


TEXT = Form(heads=4, kv_heads=2, causal="mask", rotary=True, attention="spelled")
VLM_PLANS = {
    "in the decoder": [("decoder:1", "relay", 3), ("decoder:2", "unlike", 2)],
    "at the merge": [("decoder:0", "length", 2)],
    "in the tower": [("vision:1", "length", 4)],
    "in both": [("vision:1", "length", 6), ("vision:end", "unlike", 4), ("decoder:1", "relay", 1)],
}
GROUPED = {k: [(s, m, 2 * n if s[0] == "v" else n) for s, m, n in p] for k, p in VLM_PLANS.items()}
IDS = [[1, 9, 9, 9, 9, 2, 9, 9, 3, 4], [9, 5, 9, 9, 6, 9, 9, 7, 8, 9]]


@functools.cache
def vlm(group: int, text: Form) -> tuple[TinyVlm, Facts, Tensor, Tensor]:
    torch.manual_seed(1)
    count = 6 * group
    model = TinyVlm(Form(), text, patches=count, group=group, length=len(IDS[0]))
    model = model.eval().requires_grad_(False)
    patches, ids = torch.randn(2, count, CHANNELS), torch.tensor(IDS)
    return model, analysed(model, (torch.randn(2, count, CHANNELS), ids.flip(0))), patches, ids


@pytest.mark.parametrize("text", [TEXT, Form(causal="flag"), Form(layout="BNH", causal="finite")])
@pytest.mark.parametrize("group", [1, 2])
def test_the_rows_that_stay_are_those_of_a_vlm_without_the_others(group: int, text: Form) -> None:
    model, facts, patches, ids = vlm(group, text)

    def visual(item: int, place: int) -> bool:
        return int(ids[item, place]) == IMAGE

    for chosen in (GROUPED if group == 2 else VLM_PLANS).values():
        stages = [Stage(*stage) for stage in chosen]
        tower = Remover([s for s in stages if s.site[0] == "v"], 2, lambda i, p: True, group=group)
        decoder = Remover([s for s in stages if s.site[0] == "d"], 3, visual, 9, relay=-1)
        logits, places = model.shortened(patches, ids, tower, decoder)
        result = run(facts, stages, patches, ids)
        for alive, left in zip(result.alive, tower.left + decoder.left, strict=True):
            assert torch.equal(alive, torch.zeros_like(alive).scatter(1, left, True))
        check_rows(next(iter(result.outputs.values())), logits, places)
