from __future__ import annotations

from pathlib import Path

import torch
from testsuite.targets.onnx.running import agree
from torch import Tensor, nn

from tokopt.targets.compare import Tolerance

sdpa = nn.functional.scaled_dot_product_attention
LOWEST = torch.finfo(torch.float32).min


class Fits(nn.Module):
    """Every form that the Attention operator can express."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> dict[str, Tensor]:
        two_k, two_v = k[:, :2], v[:, :2]
        added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        return {
            "plain": sdpa(q, k, v),
            "causal": sdpa(q, k, v, is_causal=True),
            "scaled": sdpa(q, k, v, scale=0.3),
            "grouped": sdpa(q, two_k, two_v, enable_gqa=True),
            "narrow values": sdpa(q, k, v[..., :3]),
            "mask": sdpa(q, k, v, attn_mask=mask),
            "mask of one item": sdpa(q, k, v, attn_mask=mask[0, 0]),
            "mask of heads": sdpa(q, k, v, attn_mask=mask[1].expand(4, -1, -1)),
            "mask of keys": sdpa(q, k, v, attn_mask=mask[:, :, 3:4]),
            "added -inf": sdpa(q, k, v, attn_mask=added),
            "added lowest": sdpa(q, k, v, attn_mask=added.clamp(min=LOWEST)),
            "added bias": sdpa(q, k, v, attn_mask=added + q[:, :, :, :1]),
        }


class Chains(nn.Module):
    """Forms that it cannot: other ranks, broadcast batches."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {
            "three dims": sdpa(q[0], k[0], v[0]),
            "three dims, mask": sdpa(q[0], k[0], v[0], attn_mask=mask[0, 0]),
            "three dims, causal": sdpa(q[0], k[0], v[0], is_causal=True),
            "five dims": sdpa(q[None], k[None], v[None], attn_mask=mask),
            "one batch of keys": sdpa(q, k[:1], v[:1], scale=0.2),
            "added -inf": sdpa(q[0], k[0], v[0], attn_mask=torch.where(mask[0], 0.0, -torch.inf)),
        }


def tensors() -> dict[str, Tensor]:
    """The first row of item 0 may attend to nothing."""
    torch.manual_seed(0)
    heads = {name: torch.randn(2, 4, 7, 8) for name in ("q", "k", "v")}
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
    mask[0, 0, 0] = False
    return {**heads, "mask": mask}


def test_every_form_is_one_attention_node_and_equals_torch_in_rows_that_see_nothing(
    tmp_path: Path,
) -> None:
    kinds = agree(Fits(), tensors(), tmp_path, Tolerance(2e-6, 0))
    assert kinds["Attention"] == 12 and kinds["Softmax"] == 0


def test_other_ranks_and_broadcast_batches_equal_torch(tmp_path: Path) -> None:
    kinds = agree(Chains(), tensors(), tmp_path, Tolerance(2e-6, 0))
    assert kinds["Attention"] == 0 and kinds["Softmax"] == 6


def test_half_precision_equals_torch(tmp_path: Path) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in tensors().items()}
    agree(Half(), half, tmp_path)


class Half(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        added = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -65504.0)
        return sdpa(q, k, v, attn_mask=mask) + sdpa(q, k, v, attn_mask=added)


def test_masks_of_dynamic_sizes_equal_torch(tmp_path: Path) -> None:
    def given(rows: int) -> dict[str, Tensor]:
        """Item 0 sees the first half of its keys: none of one."""
        mask = torch.ones(2, 1, 1, rows, dtype=torch.bool)
        mask[0, ..., rows // 2 :] = False
        return {"x": torch.randn(2, 2, rows, 4), "mask": mask}

    size = torch.export.Dim("size", min=1, max=16)
    shapes: dict[str, dict[int, object]] = {"x": {2: size}, "mask": {3: size}}
    agree(Keys(), given(6), tmp_path, None, shapes, given(1), given(9))


class Keys(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return sdpa(x, x, x, attn_mask=mask)
