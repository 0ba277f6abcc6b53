"""The oracle against twins in which rows are removed by hand."""

from __future__ import annotations

import pytest
import torch
from testsuite.passes.oracle.remover import Remover
from testsuite.passes.oracle.run_plan import analysed, run_plan, same, same_choices, same_rows
from testsuite.passes.oracle.tiny_block import Form
from testsuite.passes.oracle.tiny_vit import CHANNELS, TinyVit
from testsuite.passes.oracle.tiny_vlm import IMAGE, TinyVlm

from tokopt.ir.plan import Stage

PATCHES, PREFIX = 8, 2

FORMS = {
    "fused, grouped heads": Form(heads=4, kv_heads=2, rotary=True),
    "spelled out, grouped heads": Form(attention="spelled", heads=4, kv_heads=2),
    "bmm, batch second": Form(attention="bmm", layout="NBH", bias=True),
    "einsum": Form(attention="einsum"),
    "causal": Form(causal="flag"),
    "causal by a mask, batch second": Form(causal="mask", layout="NBH", rotary=True),
    "causal by a mask, spelled out": Form(attention="spelled", causal="mask", bias=True),
    "causal by a finite number, no batch": Form(attention="spelled", causal="finite", layout="NH"),
    "no batch": Form(layout="NH", bias=True),
}

PLANS = [
    [("vision:1", "length", 5)],
    [("vision:end", "relay", 3)],
    [("vision:1", "relay", 6), ("vision:2", "unlike", 5), ("vision:end", "relay", 2)],
]


@pytest.mark.parametrize("name", FORMS)
def test_the_rows_that_stay_are_those_of_a_vit_without_the_others(name: str) -> None:
    torch.manual_seed(0)
    form = FORMS[name]
    shape = (PATCHES, CHANNELS) if form.layout == "NH" else (2, PATCHES, CHANNELS)
    model = TinyVit(form, patches=PATCHES, prefix=PREFIX).eval().requires_grad_(False)
    facts, patches = analysed(model, (torch.randn(shape),)), torch.randn(shape)
    for plan in PLANS:
        stages = [Stage(*stage) for stage in plan]
        remover = Remover(stages, 3, lambda item, place: place >= PREFIX)
        rows, mean, first, places = model.shortened(patches, remover)
        result = run_plan(facts, stages, patches)
        same_choices(result, remover)
        found_rows, found_mean, found_first = result.outputs.values()
        found_rows = found_rows.transpose(0, 1) if form.layout == "NBH" else found_rows
        same_rows(found_rows[None] if form.layout == "NH" else found_rows, rows, places)
        same(found_mean.view_as(mean), mean)
        same(found_first.view_as(first), first)


TEXT = Form(heads=4, kv_heads=2, causal="mask", rotary=True, attention="spelled")
IDS = [[1, 9, 9, 9, 9, 2, 9, 9, 3, 4], [9, 5, 9, 9, 6, 9, 9, 7, 8, 9]]
VLM_PLANS = [
    [("decoder:1", "relay", 3), ("decoder:2", "unlike", 2)],
    [("decoder:0", "length", 2)],
    [("vision:1", "length", 4)],
    [("vision:1", "length", 6), ("vision:end", "unlike", 4), ("decoder:1", "relay", 1)],
]


@pytest.mark.parametrize(("group", "text"), [(1, TEXT), (2, Form(causal="flag"))])
def test_the_rows_that_stay_are_those_of_a_vlm_without_the_others(group: int, text: Form) -> None:
    torch.manual_seed(1)
    count, ids = 6 * group, torch.tensor(IDS)
    model = TinyVlm(Form(), text, patches=count, group=group, length=len(IDS[0]))
    model.eval().requires_grad_(False)
    facts = analysed(model, (torch.randn(2, count, CHANNELS), ids.flip(0)))
    patches = torch.randn(2, count, CHANNELS)

    def visual(item: int, place: int) -> bool:
        return int(ids[item, place]) == IMAGE

    for plan in VLM_PLANS:
        stages = [Stage(s, m, keep * group if s[0] == "v" else keep) for s, m, keep in plan]
        tower = Remover([s for s in stages if s.site[0] == "v"], 2, lambda i, p: True, group=group)
        decoder = Remover([s for s in stages if s.site[0] == "d"], 3, visual, 9, relay=-1)
        logits, places = model.shortened(patches, ids, tower, decoder)
        result = run_plan(facts, stages, patches, ids)
        same_choices(result, tower, decoder)
        same_rows(next(iter(result.outputs.values())), logits, places)
