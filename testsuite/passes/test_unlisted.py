"""Architectures on no list: hand-written modules, each with a form that no model of the zoo has."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from testsuite.zoo.judge import attempt, chosen_places, strided
from testsuite.zoo.sample import capture
from testsuite.zoo.weights import randomise
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from tokopt.ir.errors import TokoptError, UnsupportedError
from tokopt.ir.facts import Facts, analyse
from tokopt.passes.default_plan import default_plan
from tokopt.passes.normalize import normalize

WIDTH, ROWS, IMAGE = 24, 16, 49


class Layer(nn.Module):
    """Attention and what comes behind it, pre-norm; ``pool`` makes fewer keys of the rows."""

    def __init__(self, after: nn.Module, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.after, self.pool = after, pool

    def forward(self, x: Tensor) -> Tensor:
        """Return rows ``[B, N, C]``."""
        y = self.norms[0](x)
        read = y if self.pool is None else self.pool(y.mT.unflatten(2, (4, 4))).flatten(2).mT
        q, (k, v) = self.qkv(y)[..., :WIDTH], self.qkv(read)[..., WIDTH:].chunk(2, -1)
        heads = [part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (q, k, v)]
        x = x + self.out(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.after(self.norms[1](x))


class Experts(nn.Module):
    """Two of three experts for each row, their weights looked up row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.up = nn.Parameter(torch.zeros(3, 40, WIDTH))
        self.down = nn.Parameter(torch.zeros(3, WIDTH, 40))

    def forward(self, x: Tensor) -> Tensor:
        """Return rows ``[B, N, C]``."""
        rows = x.flatten(0, 1)
        shares, chosen = self.router(rows).softmax(-1).topk(2, dim=-1)
        given, expert = rows.repeat_interleave(2, 0), chosen.flatten()
        made = silu(torch.bmm(self.up[expert], given.unsqueeze(-1)))
        made = torch.bmm(self.down[expert], made).squeeze(-1) * shares.flatten().unsqueeze(-1)
        return made.unflatten(0, (-1, 2)).sum(1).view_as(x)


def mlp() -> nn.Module:
    """Return a two-layer perceptron."""
    return nn.Sequential(nn.Linear(WIDTH, 40), nn.GELU(), nn.Linear(40, WIDTH))


class Tower(nn.Module):
    """Patches of a picture, positions of any module, layers, mean."""

    def __init__(self, layer: Callable[[], Layer], position: nn.Module | None = None) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, WIDTH, 4, 4)
        self.position = nn.Identity() if position is None else position
        self.layers = nn.Sequential(*(layer() for _ in range(3)))

    def rows(self, pixels: Tensor) -> Tensor:
        """Return the tower's rows ``[B, 16, C]``."""
        rows = self.cut(pixels).flatten(2).mT
        return self.layers(rows + self.position(rows.mT).mT)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return ``[B, C]``."""
        return self.rows(pixels).mean(1)


class RowsFirst(nn.Module):
    """``torch.nn``'s own encoder and decoder, whose rows are the first dim: ``[N, B, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, WIDTH, 4, 4)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(WIDTH, 2, 40), 2, enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, 2, 40), 1)
        self.queries = nn.Parameter(torch.zeros(3, 1, WIDTH))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return what three learned queries read, ``[3, B, C]``."""
        rows = self.encoder(self.cut(pixels).flatten(2).permute(2, 0, 1))
        return self.decoder(self.queries.expand(-1, rows.shape[1], -1), rows)


class Folded(nn.Module):
    """2×2 rows become one by ``view`` of permuted values, then rows of a prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Tower(lambda: Layer(mlp()))
        self.fold = nn.Linear(4 * WIDTH, WIDTH)
        self.words, self.read = nn.Embedding(50, WIDTH), nn.Sequential(*(Layer(mlp()),) * 2)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Return what the last word became, ``[B, C]``."""
        rows = self.tower.rows(pixels)
        pairs = rows.reshape(-1, 4, 2, 2 * WIDTH).permute(0, 2, 1, 3).contiguous()
        rows = pairs.reshape(-1, 2, 2, 4 * WIDTH).permute(0, 2, 1, 3)
        text = self.words(ids)
        text = text.masked_scatter((ids == IMAGE)[..., None], self.fold(rows))
        return self.read(text)[:, -1]


def positions() -> nn.Module:
    """Return a convolution whose weights are computed from others in the graph."""
    return nn.utils.parametrizations.weight_norm(nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=4))


PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[3, 7, *[IMAGE] * 4, 9, 2, 5]] * 2)
FORMS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "experts": (lambda: Tower(lambda: Layer(Experts())), (PIXELS,)),
    "weights_of_weights": (lambda: Tower(lambda: Layer(mlp()), positions()), (PIXELS,)),
    "rows_first": (RowsFirst, (PIXELS,)),
    "folded_by_views": (Folded, (PIXELS, IDS)),
}


def facts_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> Facts:
    return analyse(normalize(capture(randomise(model, 0), inputs)))


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_no_list_is_cut_as_the_oracle_says(form: str) -> None:
    make, inputs = FORMS[form]
    facts = facts_of(make(), inputs)
    named = dict(zip(map(str, facts.exported.graph_signature.user_inputs), inputs, strict=True))
    for places in chosen_places(facts).values():
        found = attempt(facts, functools.partial(strided, places, 0.5), named, [])
        assert [type(found.get(gate)) for gate in ("identity", "oracle")] == [float] * 2, found


def test_rows_that_were_pooled_are_no_keys_of_single_rows() -> None:
    facts = facts_of(Tower(lambda: Layer(mlp(), nn.Conv2d(WIDTH, WIDTH, 2, 2))), (PIXELS,))
    (stack,) = facts.stacks
    assert all(layer.windowed for layer in stack.stack.layers)
    places = chosen_places(facts)["vision"]
    found = attempt(facts, functools.partial(strided, places, 0.5), {"pixels": PIXELS}, [])
    assert isinstance(found.get("oracle"), float), found


class Real(nn.Module):
    """Pictures that are all zero are left out, so how many rows there are is data."""

    def __init__(self) -> None:
        super().__init__()
        self.folded = Folded()

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Return what the last word became, ``[B, C]``."""
        real = pixels.flatten(1).ne(0).any(1)
        return self.folded(pixels[real], ids)


def test_a_count_that_is_data_bars_every_site_and_says_where_it_is_written() -> None:
    facts = facts_of(Real(), (PIXELS, IDS))
    decoder = next(stack for stack in facts.stacks if stack.role == "decoder")
    reasons = {str(site.barrier) for site in decoder.sites}
    assert len(reasons) == 1 and "visual rows, a number known only at run time" in reasons.pop()
    with pytest.raises(TokoptError, match="only known at run time"):
        default_plan(facts, 0.5)


class Chosen(nn.Module):
    """Image rows are gathered to the places of a mask, backwards; ``where`` takes them or text."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.words = nn.Conv2d(3, WIDTH, 4, 4), nn.Embedding(50, WIDTH)
        self.read = nn.Sequential(*(Layer(mlp()),) * 2)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Return what the last word became, ``[B, C]``."""
        rows, here = self.cut(pixels).flatten(2).mT, ids == IMAGE
        place = (ROWS - here.long().cumsum(1)).clamp(min=0)[..., None].expand(-1, -1, WIDTH)
        return self.read(torch.where(here[..., None], rows.gather(1, place), self.words(ids)))[
            :, -1
        ]


def test_rows_mixed_in_an_unknown_way_are_refused_with_what_would_be_understood() -> None:
    facts = facts_of(Chosen(), (PIXELS, torch.tensor([[3, *[IMAGE] * ROWS, 9, 2]] * 2)))
    assert [stack.role for stack in facts.stacks] == ["mixed"]
    with pytest.raises(UnsupportedError, match="mixed so that the graph does not tell") as error:
        default_plan(facts, 0.5)
    assert "node where" in str(error.value) and "masked_scatter" in str(error.value)
