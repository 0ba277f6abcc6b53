import pytest
import torch
from testsuite.zoo.sample import capture
from torch import Tensor, nn

from tokopt.ir.facts import analyse
from tokopt.passes.normalize import normalize

WIDTH = 16


class OneLayer(nn.Module):
    """Attention written out in one of several ways."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.learned = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        keys = k.transpose(-2, -1)
        if self.form == "fused":
            return x + nn.functional.scaled_dot_product_attention(q, k, v)
        if self.form == "fused with scale":
            return x + nn.functional.scaled_dot_product_attention(q, k, v, scale=0.7)
        logits = {
            "times": lambda: q @ keys * 0.5,
            "divided": lambda: q @ keys / 8.0,
            "before": lambda: (q * 0.3) @ keys,
            "twice": lambda: (q @ keys * 0.5 + x.mean()) / 2.0,
            "none": lambda: q @ keys,
            "learned": lambda: q @ keys * self.learned,
            "alpha": lambda: torch.baddbmm(torch.zeros(1), q, keys, alpha=0.6),
        }[self.form]()
        return x + logits.softmax(-1) @ v


@pytest.mark.parametrize(
    ("form", "scale"),
    [
        ("fused", None),
        ("fused with scale", 0.7),
        ("times", 0.5),
        ("divided", 0.125),
        ("before", 1.0),
        ("twice", 0.25),
        ("none", 1.0),
        ("learned", None),
        ("alpha", 0.6),
    ],
)
def test_the_factor_is_read_off_the_graph(form: str, scale: float | None) -> None:
    facts = analyse(normalize(capture(OneLayer(form), (torch.randn(2, 5, WIDTH),))))
    (site,) = facts.attention
    assert site.scale == (scale if scale is None else pytest.approx(scale))
