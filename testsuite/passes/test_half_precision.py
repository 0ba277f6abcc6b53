"""Half precision: a bf16 program is judged in fp32, where a wrong rewrite cannot hide."""

from __future__ import annotations

import torch
from testsuite.zoo.handvit import IMAGE_SIZE, HandVit
from testsuite.zoo.weights import noise, randomise
from torch import nn

from tokopt.ir.facts import analyse
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.validate import Checked, validate


class Flattened(nn.Module):
    """Attention with batch and heads flattened between product and softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.first(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        scores = q.flatten(0, 1) @ k.flatten(0, 1).transpose(1, 2)
        weights = scores.unflatten(0, (-1, 4)).softmax(-1)
        return x + self.second((weights @ v).transpose(1, 2).flatten(2))


def test_a_bf16_program_passes_every_gate_at_the_tolerances_of_fp32() -> None:
    module = randomise(HandVit(2).eval(), 0).requires_grad_(False).to(torch.bfloat16)
    pixels = noise(1, 3, IMAGE_SIZE, IMAGE_SIZE, seed=1).to(torch.bfloat16)
    normal = normalize(torch.export.export(module, (pixels,), strict=False))
    facts = analyse(normal)
    plan = Plan((Stage("vision:1", "tome", 20), Stage("vision:end", "vtc_cls", 9)))
    applied = apply_plan(normal, plan, find_method)
    name = normal.graph_signature.user_inputs[0]
    verdicts = list(validate(Checked(facts, plan, applied, find_method), [{str(name): pixels}]))
    assert [v.gate for v in verdicts] == ["structure", "identity", "selection", "oracle"]
    assert all(v.passed for v in verdicts), [v.message for v in verdicts]


def test_attention_flattened_between_product_and_softmax_is_found() -> None:
    module = Flattened().eval().requires_grad_(False)
    normal = normalize(torch.export.export(module, (torch.randn(2, 9, 16),), strict=False))
    assert len(analyse(normal).attention) == 1
