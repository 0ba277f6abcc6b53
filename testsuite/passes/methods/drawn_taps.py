"""Taps drawn from a seed: random operands, attention written out in full (no library code)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokopt.ir.places import Places
from tokopt.passes.methods.method import LayerTap, Taps, TowerTap

PREFIX = 2


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tap(depth: int, query: Tensor, key: Tensor, value: Tensor) -> LayerTap:
    scale = 0.9 * query.shape[-1] ** -0.5  # not the default: a score must read it
    groups = query.shape[1] // key.shape[1]
    logits = query @ key.repeat_interleave(groups, 1).transpose(-1, -2) * scale
    whole = logits.softmax(-1)

    def rows(at: Tensor) -> Tensor:
        return torch.stack([whole[item][:, numbers] for item, numbers in enumerate(at)])

    return LayerTap(
        depth,
        query,
        key,
        value,
        lambda row: whole[:, :, row],
        scale,
        rows=rows,
        blocks=blocks(query, key, value),
    )


def blocks(query: Tensor, key: Tensor, value: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Rows for two sub-blocks, made of the operands of the attention."""
    groups = query.shape[1] // key.shape[1]
    many = [query, *(x.repeat_interleave(groups, 1) for x in (key, value))]
    first, second, third = (x.transpose(1, 2).flatten(2) for x in many)
    return (first, second), (second + first, third)


def candidates(role: str, batch: int, rows: int) -> Tensor:
    """A tower: all but the prefix.  A decoder: other places in each item, then text.  Text: all."""
    mask = torch.full((batch, rows), role == "text")
    for item in range(0 if role == "text" else batch):
        start = PREFIX if role == "vision" else 1 + item
        mask[item, start : rows if role == "vision" else rows - 3 - batch + item] = True
    return mask


def text_rows(visual: Tensor) -> Tensor:
    """What is not visual; the first row of every second item is padding."""
    text = ~visual
    text[1::2, 0] = False
    return text


def places(visual: Tensor) -> Places:
    """Candidates in raster order on the squarest grid that holds them."""
    count = max(int(visual[0].sum()), 1)
    height = max(h for h in range(1, count + 1) if count % h == 0 and h * h <= count)
    width = count // height
    number = visual.long().cumsum(1) - 1
    table = torch.stack([0 * number, number // width, number % width], dim=-1)
    on = visual.unsqueeze(-1)
    return Places(*torch.where(on, table, -1).unbind(-1), (1, height, width))


def tower_of(layer: LayerTap, visual: Tensor, patches: Tensor) -> TowerTap:
    """A tower of as many rows as there are candidates, behind two learned ones."""

    def arrive(values: Tensor, elsewhere: float) -> Tensor:
        number = (visual.long().cumsum(1) - 1).clamp_min(0)
        return values[:, PREFIX:].gather(1, number).masked_fill(~visual, 0.0)

    rows = torch.arange(layer.query.shape[2]).unsqueeze(0) >= PREFIX
    return TowerTap(layer, 0, rows, arrive, patches, layer)


def drawn_taps(
    role: str = "vision",
    *,
    batch: int = 2,
    rows: int = 14,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    width: int = 6,
    relay: int | None = 0,
    keep: int = 4,
    seed: int = 0,
    carried: bool = False,
    options: Mapping[str, int | float | str] | None = None,
) -> Taps:
    def operand(which: int, depth: int, count: int) -> Tensor:
        return draw(batch, count, rows, width, seed=1000 * seed + 10 * depth + which)

    visual = candidates(role, batch, rows)
    count = int(visual[0].sum())
    towers = [
        draw(batch, heads, count + PREFIX, width, seed=1000 * seed + 900 + i) for i in range(3)
    ]
    pixels = draw(batch, count + PREFIX, 9, seed=1000 * seed + 6)
    return Taps(
        layers=[
            tap(
                depth,
                operand(0, depth, heads),
                operand(1, depth, kv_heads),
                operand(2, depth, kv_heads),
            )
            for depth in range(layers)
        ],
        layer_count=layers,
        candidates=visual,
        hidden=draw(batch, rows, 2 * width, seed=1000 * seed + 9),
        carried=draw(batch, rows, seed=1000 * seed + 8).abs() if carried else None,
        relay=-1 if role == "decoder" else relay,
        keep=keep,
        count=count,
        tower=tower_of(tap(0, *towers), visual, pixels) if role == "decoder" else None,
        seed=seed,
        text=text_rows(visual) if role == "decoder" else None,
        places=places(visual),
        entry=draw(batch, rows, 2 * width, seed=1000 * seed + 7),
        options=options or {},
        sizes=draw(batch, rows, seed=1000 * seed + 5).abs().ceil(),
    )
