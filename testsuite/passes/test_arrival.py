"""Arrival: crops with a newline row behind every line of patches, as any-resolution models do."""

from __future__ import annotations

import pytest
import torch
from testsuite.passes.gates import facts_of, failures
from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import noise, randomise
from torch import Tensor, nn
from torch.nn import functional

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget import visual_rows
from tokopt.passes.methods.registry import find_method

WIDTH, SIDE, VISUAL_ID = 16, 4, 9


class Block(nn.Module):
    def __init__(self, causal: bool, rows: int = 0) -> None:
        super().__init__()
        self.norm, self.causal, self.rows = nn.LayerNorm(WIDTH), causal, rows
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = (
            part.unflatten(-1, (2, -1)).transpose(1, 2)
            for part in self.qkv(self.norm(x))
            .view(-1, self.rows or x.shape[-2], 3 * WIDTH)
            .chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=self.causal)
        return x + self.out(mixed.transpose(1, 2).flatten(2)).reshape(x.shape)


class Crops(nn.Module):
    """``patches [3, 16, 5], ids [1, S] -> [1, S, 10]``: a thumbnail, and two crops side by side.

    The crops' patches are one map of 4 x 8; ``cropped`` lines are cut off at its top and bottom,
    and every line ends in a learned newline row.  ``twice``: the thumbnail is written twice;
    ``flat``: the tower's stream is ``[48, C]``.
    """

    def __init__(self, cropped: int, twice: bool = False, flat: bool = False) -> None:
        super().__init__()
        self.flat, count = flat, SIDE * SIDE
        self.cropped, self.twice, self.embed = cropped, twice, nn.Linear(5, WIDTH)
        self.tower = nn.ModuleList([Block(False, count), Block(False, count)])
        self.text = nn.Embedding(10, WIDTH)
        self.layers, self.head = nn.ModuleList([Block(True), Block(True)]), nn.Linear(WIDTH, 10)
        self.newline = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, patches: Tensor, ids: Tensor) -> Tensor:
        x = self.embed(patches)
        x = x.flatten(0, 1) if self.flat else x
        for block in self.tower:
            x = block(x)
        x = x.view(3, -1, WIDTH)
        plane = x[1:].view(1, 2, SIDE, SIDE, WIDTH).permute(4, 0, 2, 1, 3)
        plane = plane.flatten(1, 2).flatten(2, 3)[:, self.cropped : SIDE - self.cropped]
        line = self.newline[:, None, None].expand(WIDTH, plane.shape[1], 1)
        rows = torch.cat([plane, line], -1).flatten(1).transpose(0, 1)
        thumbnails = [x[0], x[0]] if self.twice else [x[0]]
        rows = torch.cat([*thumbnails, rows])
        mask = (ids == VISUAL_ID).unsqueeze(-1)
        y = self.text(ids).masked_scatter(mask, rows)
        for block in self.layers:
            y = block(y)
        return self.head(y)


def build(cropped: int, twice: bool = False, flat: bool = False) -> Sample:
    """Export with one prompt of 5 words around the image."""
    module = randomise(Crops(cropped, twice, flat).eval(), 0)
    rows = SIDE * SIDE * (1 + twice) + (SIDE - 2 * cropped) * (2 * SIDE + 1)
    ids = torch.tensor([[1, 2, *[VISUAL_ID] * rows, 3, 4, 5]])
    inputs = (noise(3, SIDE * SIDE, 5, seed=0), ids)
    return Sample("crops", capture(module, inputs), inputs, module)


def test_newlines_always_arrive_and_cropped_lines_never() -> None:
    """Of 16 patches of each crop 8 arrive: 6 kept of 16, 16 and 16 are 6 + 6 + 6 and 2 newlines."""
    facts = facts_of(build(cropped=1))
    tower, decoder = facts.stacks
    found = facts.arrival(tower.sites[1], decoder)
    assert found is not None and found.others == 2 and found.copies == 1 and found.holes
    lines = found.reach.view(3, SIDE, SIDE)
    assert lines[0].all() and lines[1:, 1:3].all()
    assert not lines[1:, 0].any() and not lines[1:, 3].any()
    assert [found.rows(k) for k in (1, 6, 8, 12, 16)] == [5, 20, 26, 30, 34]
    assert visual_rows(facts, Plan((Stage("vision:1", "stride", 6),))) == (20, 20)


def test_without_cropping_every_row_arrives_once() -> None:
    facts = facts_of(build(cropped=0))
    tower, decoder = facts.stacks
    found = facts.arrival(tower.sites[1], decoder)
    assert found is not None and bool(found.reach.all()) and found.others == SIDE
    assert facts.reach(tower.sites[1]) is None
    assert found.rows(5) == 3 * 5 + SIDE


@pytest.mark.parametrize("keep", [1, 8, 12])
@pytest.mark.parametrize("method", ["stride", "flowcut"])
@pytest.mark.parametrize("cropped", [0, 1])
def test_a_tower_stage_before_crops_are_put_together_passes_every_gate(
    cropped: int, method: str, keep: int
) -> None:
    sample = build(cropped)
    facts = facts_of(sample)
    assert failures(facts, (Stage("vision:1", method, keep),), sample.inputs) == []


@pytest.mark.parametrize("method", ["stride", "flowcut"])
def test_a_stream_of_all_crops_in_one_dim_is_the_same(method: str) -> None:
    sample = build(cropped=1, flat=True)
    facts = facts_of(sample)
    assert failures(facts, (Stage("vision:1", method, 6),), sample.inputs) == []


def test_no_kept_row_of_a_crop_is_one_that_is_cropped_off_later() -> None:
    sample = build(cropped=1)
    facts = facts_of(sample)
    applied = apply_plan(facts.exported, Plan((Stage("vision:1", "random", 8),)), find_method)
    kept = applied.exported.module()(*sample.inputs)[1][0]
    lines = (kept // SIDE).tolist()
    assert all(line in (1, 2) for item in lines[1:] for line in item)


def test_rows_that_arrive_more_often_than_others_are_refused() -> None:
    facts = facts_of(build(cropped=0, twice=True))
    with pytest.raises(UnsupportedError, match="some rows of the vision tower are repeated"):
        visual_rows(facts, Plan((Stage("vision:1", "stride", 4),)))
