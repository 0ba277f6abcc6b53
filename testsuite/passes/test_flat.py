"""A stream of rows on a plane is one of rows in a dim: single rows leave, and are not computed."""

from __future__ import annotations

import pytest
import torch
from testsuite.passes.gates import facts_of, failures
from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import noise, randomise
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from tokopt.ir.dims import operator_name
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize

WIDTH, HIGH, WIDE = 24, 4, 6


class Block(nn.Module):
    """``[B, H, W, C]``: attention over the plane, or over windows of 2x3, and an MLP on it."""

    def __init__(self, window: bool, channels_first: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.ModuleList([nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)])
        self.window, self.channels_first = window, channels_first

    def attend(self, x: Tensor) -> Tensor:
        batch, high, wide, _ = x.shape
        if self.window:
            x = x.view(batch, 2, high // 2, 2, wide // 2, WIDTH).transpose(2, 3).flatten(0, 2)
        rows = x.flatten(1, 2)
        heads = self.qkv(rows).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        rows = self.out(scaled_dot_product_attention(*heads.unbind(0)).transpose(1, 2).flatten(2))
        if not self.window:
            return rows.view(batch, high, wide, WIDTH)
        x = rows.view(batch, 2, 2, high // 2, wide // 2, WIDTH)
        return x.transpose(2, 3).reshape(batch, high, wide, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1) if self.channels_first else x
        x = x + self.attend(self.norms[0](x))
        x = x + self.mlp[1](gelu(self.mlp[0](self.norms[1](x))))
        return x.permute(0, 3, 1, 2) if self.channels_first else x


class Plane(nn.Module):
    """A tower whose rows lie on a plane; ``[B, 3, 16, 24] -> [B, 7]``."""

    def __init__(self, windows: tuple[bool, ...], channels_first: bool) -> None:
        super().__init__()
        self.cut, self.head = nn.Conv2d(3, WIDTH, 4, 4), nn.Linear(WIDTH, 7)
        self.blocks = nn.ModuleList(Block(window, channels_first) for window in windows)
        self.channels_first = channels_first

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.cut(pixels)
        x = x if self.channels_first else x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3) if self.channels_first else (1, 2)))


def plane(*windows: bool, channels_first: bool = False) -> Sample:
    module = randomise(Plane(windows, channels_first), 0)
    pixels = noise(2, 3, 4 * HIGH, 4 * WIDE, seed=1)
    return Sample("plane", capture(module, (pixels,)), (pixels,), module)


FORMS = {"channels last": False, "channels first between the layers": True}


@pytest.mark.parametrize("form", FORMS)
def test_single_rows_of_a_plane_leave_and_no_later_product_has_them(form: str) -> None:
    sample = plane(False, False, False, channels_first=FORMS[form])
    normal = normalize(sample.exported)
    torch.testing.assert_close(normal.module()(*sample.inputs), sample.eager(*sample.inputs))
    facts = facts_of(sample)
    assert facts.consumer.count == 24 and {site.group for site in facts.consumer.sites} == {1}
    stages = (Stage("vision:1", "stride", 5),)
    assert failures(facts, stages, sample.inputs) == []
    graph = apply_plan(facts.exported, Plan(stages), find_method).exported.graph
    products = [node for node in graph.nodes if operator_name(node) == "aten::linear"]
    rows = [node.meta["val"].shape[-2] for node in products]
    assert rows == [24] * 4 + [5] * 8 + [2]  # four products a layer, and the head's on two items


def test_windows_on_a_plane_leave_whole_and_behind_them_single_rows() -> None:
    sample = plane(True, False)
    facts = facts_of(sample)
    assert [site.group for site in facts.consumer.sites] == [6, 1, 1]
    assert failures(facts, [Stage("vision:0", "stride", 12)], sample.inputs) == []
    assert failures(facts, [Stage("vision:1", "stride", 7)], sample.inputs) == []


def test_the_sums_of_a_convolutional_network_stay() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for conv in self.convs:
                x = x + conv(x)
            return x

    normal = normalize(capture(randomise(Residual(), 0), (noise(1, 8, 6, 6, seed=1),)))
    sums = [node for node in normal.graph.nodes if operator_name(node) == "aten::add"]
    assert [tuple(node.meta["val"].shape) for node in sums] == [(1, 8, 6, 6)] * 2


def test_a_size_that_is_added_to_a_plane_is_no_row() -> None:
    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.layer_norm(x + x, (WIDTH,)) + x.shape[0]

    pixels = noise(2, HIGH, WIDE, WIDTH, seed=1)
    exported = capture(Counted(), (pixels,), ({0: torch.export.Dim("batch", min=2)},))
    more = torch.cat([pixels, pixels])
    torch.testing.assert_close(normalize(exported).module()(more), Counted()(more))
