"""A hand-written decode step: grouped heads, a mask of paddings, caches given back whole."""

from __future__ import annotations

import torch
from testsuite.zoo.weights import randomise
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn.functional import scaled_dot_product_attention

from tokopt.passes.normalize import normalize

WIDTH, HEADS, SHARED, LAYERS = 24, 4, 2, 4
CACHES = [f"caches_{number}" for number in range(2 * LAYERS)]


class Step(nn.Module):
    """``x [B,1,W], mask [B,T+1] bool, caches [B,2,T,6] -> x``, caches with the new row."""

    def __init__(self, summand: bool, written_out: bool) -> None:
        super().__init__()
        self.summand, self.written_out = summand, written_out
        self.query = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.rows = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x: Tensor, mask: Tensor, caches: list[Tensor]) -> tuple[Tensor, ...]:
        read, grown = mask[:, None, None], []
        if self.summand:
            read = torch.zeros(1).masked_fill(~read, -1e9)
        for depth, (query, rows) in enumerate(zip(self.query, self.rows, strict=True)):
            q = query(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            new = rows(x).unflatten(-1, (2 * SHARED, -1)).transpose(1, 2).chunk(2, 1)
            k, v = (torch.cat([caches[2 * depth + i], new[i].contiguous()], 2) for i in range(2))
            grown += [k, v]
            k, v = (
                one.unsqueeze(2).expand(-1, -1, HEADS // SHARED, -1, -1).flatten(1, 2)
                for one in (k, v)
            )
            if self.written_out:
                y = (q @ k.transpose(2, 3) * 0.4 + read).softmax(-1) @ v
            else:
                y = scaled_dot_product_attention(q, k, v, attn_mask=read, scale=0.4)
            x = x + y.transpose(1, 2).flatten(2)
        return (x, *grown)


def step(*, summand: bool = False, written_out: bool = False) -> ExportedProgram:
    """Return the step in normal form, of free batch and length."""
    model = randomise(Step(summand, written_out).eval().requires_grad_(False), 3)
    made = given(7, 2)
    items, past = Dim("items", min=1, max=64), Dim("past", min=2, max=4096)
    caches = [{0: items, 2: past} for _ in CACHES]
    shapes = ({0: items}, {0: items, 1: past + 1}, caches)
    call = (made["x"], made["mask"], [made[name] for name in CACHES])
    options = {"strict": False, "prefer_deferred_runtime_asserts_over_guards": True}
    return normalize(export(model, call, dynamic_shapes=shapes, **options))


def given(rows: int, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """Return inputs with caches of so many rows; each item but the first is padded in front."""
    draw = torch.Generator().manual_seed(seed)
    padding = torch.arange(batch)[:, None] * (rows // 3)
    found = {
        "x": torch.randn(batch, 1, WIDTH, generator=draw),
        "mask": torch.arange(rows + 1) >= padding,
    }
    width = WIDTH // HEADS
    caches = {name: torch.randn(batch, SHARED, rows, width, generator=draw) for name in CACHES}
    return {**found, **{name: 2 * rows for name, rows in caches.items()}}
