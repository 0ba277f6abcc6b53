from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.functional import scaled_dot_product_attention

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import analyse
from tokopt.passes.normalize import normalize


class Grid(nn.Module):
    """Two layers over patches ``[B, H, W, C]``; ``flat``: over ``[B, H W, C]``."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.patches, self.flat = nn.Conv2d(3, 16, 8, 8), flat
        self.inner = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).permute(0, 2, 3, 1)
        x = x.flatten(1, 2) if self.flat else x
        for linear in self.inner:
            rows = linear(x).reshape(x.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
            mixed = scaled_dot_product_attention(rows[0], rows[1], rows[2])
            x = x + mixed.transpose(1, 2).reshape(x.shape)
        return x


def exported(*, flat: bool) -> ExportedProgram:
    return torch.export.export(Grid(flat=flat), (torch.ones(2, 3, 32, 48),), strict=False)


def test_a_stream_with_its_rows_on_two_dims_is_refused_and_told_how_to_mend() -> None:
    with pytest.raises(UnsupportedError, match=r"lie on several dims: \[2, 4, 6, 16\]") as refusal:
        assert analyse(exported(flat=False)).consumer  # not in normal form, which has no such one
    assert "node permute" in str(refusal.value.where) and "flatten" in str(refusal.value.hint)


@pytest.mark.parametrize("flat", [True, False], ids=["as advised", "in normal form"])
def test_what_the_message_advises_mends_it_and_so_does_the_normal_form(flat: bool) -> None:
    stack = analyse(normalize(exported(flat=flat))).consumer
    assert (stack.role, stack.count, [site.legal for site in stack.sites]) == (
        "vision",
        24,
        [True, True, True],
    )
