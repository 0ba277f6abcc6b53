"""Attention counts what rows are made of: in every form, and a wrong count does not pass."""

from __future__ import annotations

import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, plan, verdicts
from torch import Tensor, fx

from tokopt.ir.attention import Attention
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.layout import Layout
from tokopt.passes import apply_plan, scoring, weighing
from tokopt.passes.workspace import Workspace

MERGED = "vision:1 tome 28, vision:3 tome 19"


def failed(name: str, text: str = MERGED) -> set[str]:
    family = analysed(name)
    found = verdicts(checked(family, plan(text)), every_input(family)[:1])
    return {verdict.gate for verdict in found if not verdict.passed}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dino", "vision:1 tome 28, vision:2 stride 24, vision:3 tome 19, vision:end vtc_cls 9"),
        ("llava_explicit", "vision:1 tome 24, vision:2 stride 16, vision:end vtc_cls 12"),
        ("flat", "vision:1 tome 5"),
    ],
)
def test_merged_rows_pass_every_gate(name: str, text: str) -> None:
    """What other methods read of attention behind a merge is weighed, too."""
    assert failed(name, text) == set()


def test_a_layer_that_forgets_the_sizes_fails_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen = weighing._into_mask, []

    def forget(work: Workspace, fused: fx.Node, layout: Layout, sizes: fx.Node) -> None:
        seen.append(fused)
        if len(seen) != 2:
            original(work, fused, layout, sizes)

    monkeypatch.setattr(weighing, "_into_mask", forget)
    assert failed("dino") == {"oracle"}
    assert len(seen) >= 3


def test_logits_that_forget_the_sizes_fail_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighing, "_into_logits", lambda *given: None)
    assert failed("llava_explicit", "vision:1 tome 24") == {"oracle"}


def test_sizes_of_the_neighbouring_rows_fail_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    original = apply_plan.weigh_layers

    def shifted(work, stack, depths, lead, sizes):  # type: ignore[no-untyped-def]
        with work.graph.inserting_before(sizes.next):
            wrong = work.call(torch.ops.aten.roll.default, sizes, [1], [1])
        original(work, stack, depths, lead, wrong)

    monkeypatch.setattr(apply_plan, "weigh_layers", shifted)
    assert "oracle" in failed("dino")


def test_sizes_that_start_anew_at_every_stage_fail_the_oracle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = scoring.weigh_rows

    def anew(work, reading, method, rows):  # type: ignore[no-untyped-def]
        made = original(work, reading, method, rows)
        return work.call(torch.ops.aten.clamp.default, made, None, 2.0)

    monkeypatch.setattr("tokopt.passes.stage.weigh_rows", anew)
    assert "oracle" in failed("dino", "vision:1 tome 18, vision:2 tome 9")


COUNTS = torch.tensor([[1, 2, 1, 3], [2, 2, 1, 1]])
MASKS = {
    "none": None,
    "bool": torch.tensor([[True, True, False, True]]),
    "float": torch.tensor([[0.5, -1.0, 0.0, 0.25]]),
    "causal": None,
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_key_of_size_n_counts_as_n_equal_keys(kind: str) -> None:
    """The reference repeats keys, values and mask columns instead."""
    query, key, value = (torch.randn(2, 3, 4, 5, generator=seeded(i)) for i in range(3))
    mask, causal = MASKS[kind], kind == "causal"
    operands = [query, key, value, COUNTS.float()] + ([] if mask is None else [mask])

    def attend(q: Tensor, k: Tensor, v: Tensor, counts: Tensor, *masks: Tensor) -> Tensor:
        del counts
        given = masks[0] if masks else None
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, given, is_causal=causal)

    class Model(torch.nn.Module):
        forward = staticmethod(attend)

    exported = torch.export.export(Model(), tuple(operands))
    work = Workspace.of(exported)
    (fused,) = work.graph.find_nodes(
        op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default
    )
    sizes = work.graph.find_nodes(op="placeholder")[3]
    with work.graph.inserting_before(fused):
        weighing._into_mask(work, fused, Layout(None, (0,), (1,), 2, 3), sizes)
    work.exported.graph_module.recompile()
    found = work.exported.module()(*operands)
    for item, counts in enumerate(COUNTS):
        index = torch.arange(4).repeat_interleave(counts)
        logits = query[item] @ key[item][:, index].mT * 5**-0.5
        if causal:
            logits = logits.masked_fill(index > torch.arange(4)[:, None], -torch.inf)
        if kind == "bool":
            logits = logits.masked_fill(~mask[0, index], -torch.inf)  # type: ignore[index]
        if kind == "float":
            logits = logits + mask[0, index]  # type: ignore[index]
        expected = logits.softmax(-1) @ value[item][:, index]
        torch.testing.assert_close(found[item], expected, rtol=1e-5, atol=1e-6)


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_an_attention_over_other_keys_is_refused() -> None:
    family = analysed("llava")
    stack = family.stack("vision")
    other = family.stack("decoder").stack.layers[0].attention[0]
    assert isinstance(other, Attention)
    with pytest.raises(UnsupportedError, match="keys are not the rows of vision"):
        weighing._refuse_other_keys(stack, other, False)
