"""Rows are gone, not masked: what a rewritten program multiplies is what its plan predicts."""

from __future__ import annotations

import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import every_input, rewritten
from torch import Tensor, nn

from tokopt.passes.macs import count_macs, predict_macs

ROWS, HIDDEN, HEADS = 37, 48, 4
LAYER = ROWS * HIDDEN * (3 * HIDDEN + HIDDEN + 4 * HIDDEN) + 2 * ROWS * ROWS * HIDDEN
PATCHES = 36 * HIDDEN * 3 * 8 * 8


def test_a_hand_worked_count() -> None:
    """Per layer: qkv, out and a twofold MLP on every row, two products of rows with rows."""
    family = analysed("handvit")
    given = every_input(family)[0]
    assert count_macs(family.facts.exported, given) == PATCHES + 4 * LAYER + HIDDEN * 10


def test_a_hand_worked_prediction() -> None:
    done = rewritten("handvit", "vision:2 vtc_cls 18")
    left = 19
    short = left * HIDDEN * 8 * HIDDEN + 2 * left * left * HIDDEN
    given = every_input(analysed("handvit"))[0]
    expected = PATCHES + 2 * LAYER + 2 * short + HIDDEN * 10
    assert predict_macs(done.facts, done.plan, given) == expected


class Loop(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        def step(total: Tensor, row: Tensor, y: Tensor) -> list[Tensor]:
            return [total + torch.mm(row, y), row * 1]

        return torch.ops.higher_order.scan(step, [x[0] @ y], [x], (y,))[0]


def test_a_loop_costs_its_body_at_every_step() -> None:
    """One product of 2 x 3 with 3 x 5 before it, seven in it."""
    given = {"x": torch.ones(7, 2, 3), "y": torch.ones(3, 5)}
    program = torch.export.export(Loop(), tuple(given.values()), strict=False)
    assert count_macs(program, given) == 8 * 2 * 3 * 5


class Products(nn.Module):
    """Every counted operator once."""

    def forward(self, x: Tensor, y: Tensor, image: Tensor, kernel: Tensor) -> list[Tensor]:
        return [
            torch.matmul(x, y),
            torch.bmm(x, y),
            torch.baddbmm(x, x, y.new_ones(2, 4, 4)),
            torch.mm(x[0], y[0]),
            torch.addmm(x[0], x[0], y.new_ones(4, 4)),
            torch.einsum("bik,bkj->bij", x, y),
            nn.functional.scaled_dot_product_attention(x, x, x),
            nn.functional.conv2d(image, kernel, groups=2),
        ]


def test_every_operator_counts_its_products() -> None:
    given = torch.ones(2, 3, 4), torch.ones(2, 4, 5), torch.ones(1, 4, 6, 6), torch.ones(6, 2, 3, 3)
    exported = torch.export.export(Products(), given)
    named = dict(zip(["x", "y", "image", "kernel"], given, strict=True))
    products = [120, 120, 96, 60, 48, 120, 2 * 3 * 3 * 8, 6 * 16 * 2 * 9]
    assert count_macs(exported, named) == sum(products)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llava_dynamic", "vision:1 random 20, vision:end vtc_cls 12, decoder:2 fastv 4"),
        ("qwen", "vision:3 stride 48, decoder:2 fastv 2"),
        ("dino", "vision:2 flowcut 4"),
    ],
)
def test_a_rewritten_program_multiplies_what_its_plan_predicts(name: str, text: str) -> None:
    done = rewritten(name, text)
    for given in every_input(analysed(name)):
        whole = count_macs(done.facts.exported, given)
        predicted = predict_macs(done.facts, done.plan, given)
        assert predicted < 0.9 * whole
        found = count_macs(done.applied.exported, given)
        assert predicted <= found <= 1.02 * predicted, "the scores cost the difference"
