"""A loop over equal pieces is one run over their stack; every other loop stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from testsuite.exhaustive import crossed
from testsuite.passes.gates import facts_of, failures
from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import noise, randomise
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend

from tokopt.ir.dims import operator_name
from tokopt.ir.plan import Stage
from tokopt.passes.normalize import normalize
from tokopt.passes.stacked import COMBINE
from tokopt.passes.validate import run_program

HEADS, WIDTH, ROWS = 2, 16, 24
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Cut = Callable[[Tensor, Sequence[int]], Sequence[Tensor]]


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, is_causal=True, scale=0.3)


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-1, -2)) * 0.4, -1), v)


def by_split(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    return x.split(list(sizes), 2)


def by_chunk(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    return x.chunk(len(sizes), 2)


def by_slice(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [x[:, :, s : s + size] for s, size in zip(starts, sizes, strict=True)]


def backwards(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    return by_slice(x, sizes)[::-1]


class Block(nn.Module):
    """``[rows, width]``: rows attend within their piece, as packed towers write it."""

    def __init__(self, attention: Attention, cut: Cut) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out, self.attention, self.cut = nn.Linear(WIDTH, WIDTH), attention, cut

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        rows = x.shape[0]
        qkv = self.qkv(self.norm(x)).reshape(rows, 3, HEADS, -1).permute(1, 2, 0, 3).unsqueeze(1)
        pieces = zip(*(self.cut(one, sizes) for one in qkv), strict=True)
        each = [self.attention(q, k, v).transpose(1, 2) for q, k, v in pieces]
        return x + self.out(torch.cat(each, 1).reshape(rows, -1))


class Packed(nn.Module):
    """A tower of packed blocks; ``pixels [rows, 5] -> [rows, 7]``."""

    def __init__(self, sizes: Sequence[int], blocks: Sequence[Block]) -> None:
        super().__init__()
        self.sizes, self.embed = sizes, nn.Linear(5, WIDTH)
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(WIDTH, 7)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        for block in self.blocks:
            x = block(x, self.sizes)
        return self.head(x)


def packed(
    sizes: Sequence[int],
    attention: Attention = fused,
    cut: Cut = by_split,
) -> Sample:
    module = randomise(Packed(sizes, [Block(attention, cut) for _ in range(2)]), 0)
    pixels = noise(sum(sizes), 5, seed=1)
    return Sample("packed", capture(module, (pixels,)), (pixels,), module)


def calls_of(sample: Sample) -> int:
    """Return how many calls read several rows in normal form; it computes what the model does."""
    normal = normalize(sample.exported)
    (name,) = map(str, normal.graph_signature.user_inputs)
    (got,) = run_program(normal, {name: sample.inputs[0]})
    torch.testing.assert_close(got, sample.eager(*sample.inputs), rtol=1e-5, atol=1e-6)
    return sum(operator_name(node) in COMBINE for node in normal.graph.nodes)


ATTENTIONS = {"fused": fused, "causal": causal, "written out": written_out}
CUTS = {"split": by_split, "chunk": by_chunk, "slices": by_slice}


@pytest.mark.parametrize(("attention", "cut"), crossed(ATTENTIONS, CUTS))
def test_a_loop_over_equal_pieces_is_one_call_a_layer(attention: str, cut: str) -> None:
    assert calls_of(packed([8, 8, 8], ATTENTIONS[attention], CUTS[cut])) == 2


@pytest.mark.parametrize(
    ("sizes", "cut", "calls"),
    [([8, 8, 6], by_split, 6), ([12, 12], backwards, 4), ([24], by_split, 2)],
    ids=["unequal", "in another order", "one piece"],
)
def test_every_other_loop_stays(sizes: Sequence[int], cut: Cut, calls: int) -> None:
    assert calls_of(packed(sizes, cut=cut)) == calls


def test_pieces_that_are_not_treated_alike_stay() -> None:
    class Uneven(Block):
        def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
            one, other = self.cut(x.reshape(1, 1, *x.shape), sizes)
            each = [attend(one, one, one, scale=0.1), attend(other, other, other, scale=0.2)]
            return x + torch.cat(each, 2).reshape(x.shape)

    module = randomise(Packed([12, 12], [Uneven(fused, by_split)]), 0)
    pixels = noise(ROWS, 5, seed=1)
    assert calls_of(Sample("uneven", capture(module, (pixels,)), (pixels,), module)) == 2


def test_a_value_that_is_two_for_another_piece_is_no_loop() -> None:
    class Crossed(Block):
        def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
            one, other = self.cut(x.reshape(1, 1, *x.shape), sizes)
            each = [attend(one, one, one), attend(other, other, one)]
            return x + torch.cat(each, 2).reshape(x.shape)

    module = randomise(Packed([12, 12], [Crossed(fused, by_split)]), 0)
    pixels = noise(ROWS, 5, seed=1)
    assert calls_of(Sample("crossed", capture(module, (pixels,)), (pixels,), module)) == 2


@pytest.mark.parametrize("attention", ["fused", "written out"])
def test_every_piece_keeps_rows_of_its_own(attention: str) -> None:
    sample = packed([8, 8, 8], ATTENTIONS[attention])
    facts = facts_of(sample)
    (stack,) = facts.stacks
    assert stack.count == 8 and [site.legal for site in stack.sites] == [True] * 3
    stages = (Stage("vision:0", "vtc_cls", 5), Stage("vision:1", "todre", 3))
    assert failures(facts, stages[1:], sample.inputs) == []


class Looped(nn.Module):
    """A tower with a class row that a loop runs on one image at a time; ``[3, 9, 5] -> [3, 7]``."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.first, self.embed = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Linear(5, WIDTH)
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)]) for _ in range(depth)
        )
        self.head = nn.Linear(WIDTH, 7)

    def one(self, pixels: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(1, -1, -1), self.embed(pixels)], 1)
        for norm, qkv in self.layers:
            heads = qkv(norm(x)).reshape(1, 10, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            x = x + attend(*heads.unbind(0)).transpose(1, 2).reshape(1, 10, -1)
        return self.head(x[:, 0])

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.one(pixels[i : i + 1]) for i in range(3)])


def test_a_tower_that_is_run_image_by_image_is_run_on_all_at_once() -> None:
    module, pixels = randomise(Looped(), 0), noise(3, 9, 5, seed=1)
    sample = Sample("looped", capture(module, (pixels,)), (pixels,), module)
    assert calls_of(sample) == 2
    facts = facts_of(sample)
    assert facts.consumer.count == 9 and facts.consumer.protected == 1
    assert failures(facts, [Stage("vision:1", "vtc_cls", 4)], sample.inputs) == []


def test_a_loop_over_a_tower_of_many_layers_is_followed_to_its_end() -> None:
    module, pixels = Looped(80), noise(3, 9, 5, seed=1)
    normal = normalize(capture(module, (pixels,)))
    assert sum(operator_name(node) in COMBINE for node in normal.graph.nodes) == 80
