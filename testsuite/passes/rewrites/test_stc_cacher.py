"""STC's cacher: which rows changed, by hand and in numpy, and what every such rewrite obeys."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tokopt.ir.errors import InputError
from tokopt.passes.rewrites.registry import REWRITES
from tokopt.passes.rewrites.reuse import Reuse, rows_anew
from tokopt.passes.rewrites.stc_cacher import REWRITE, changed

REUSES = {name: one for name, one in REWRITES.items() if isinstance(one, Reuse)}
every_reuse = pytest.mark.parametrize("name", REUSES)


def drawn(seed: int, rows: int = 12, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, rows, 4, generator=generator)


def test_a_row_changed_by_one_less_the_cosine_of_its_keys_worked_by_hand() -> None:
    """Two heads of width 1 are one key of width 2: (3, 4), then as it was, turned, and half of."""
    now = torch.tensor([[[[3.0], [3.0], [3.0], [0.0]], [[4.0], [4.0], [4.0], [0.0]]]])
    before = torch.tensor([[[[3.0], [-4.0], [1.0], [1.0]], [[4.0], [3.0], [0.0], [0.0]]]])
    torch.testing.assert_close(changed(now, before), torch.tensor([[0.0, 1.0, 0.4, 1.0]]))


def test_the_cosine_is_numpys_on_flat_keys() -> None:
    now, before = drawn(0), drawn(1)
    flat = [x.permute(0, 2, 1, 3).reshape(2, 12, 12).double().numpy() for x in (now, before)]
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in flat]
    expected = 1 - np.einsum("bnc,bnc->bn", *unit)
    np.testing.assert_allclose(changed(now, before).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("share", "rows", "anew"), [(0.25, 36, 9), (0.25, 7, 1), (0.1, 5, 1)])
def test_the_share_is_rounded_down_and_is_at_least_one_row(
    share: float, rows: int, anew: int
) -> None:
    assert rows_anew(share, rows) == anew


def test_every_share_that_is_a_number_of_rows_is_that_number() -> None:
    assert all(rows_anew(k / n, n) == k for n in (7, 36, 49, 729) for k in range(1, n + 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share = 0"),
        ({"share": 1.5}, "share = 1.5"),
        ({"every": 0}, "every = 0"),
        ({"every": 2.5}, "every = 2.5"),
        ({"every": "often"}, "every = 'often'"),
        ({"rate": 0.5}, "has no option 'rate'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        REWRITE.settings(options)


@every_reuse
def test_rows_that_are_as_they_were_changed_least(name: str) -> None:
    before = drawn(2)
    now = torch.where(torch.arange(12).view(1, 1, -1, 1) < 7, before, drawn(3))
    found = REUSES[name].changed(now, before)
    assert found.dtype == torch.float32 and found.shape == (2, 12)
    assert bool((found[:, :7].amax(1) < found[:, 7:].amin(1)).all())


@every_reuse
def test_rows_and_items_are_judged_by_themselves(name: str) -> None:
    now, before, order = drawn(4), drawn(5), torch.randperm(12)
    found = REUSES[name].changed(now, before)
    assert torch.equal(REUSES[name].changed(now[:, :, order], before[:, :, order]), found[:, order])
    assert torch.equal(REUSES[name].changed(now[1:], before[1:]), found[1:])


@every_reuse
def test_it_traces_with_free_sizes(name: str) -> None:
    graph = make_fx(REUSES[name].changed, tracing_mode="symbolic")(drawn(6), drawn(7))
    other = drawn(8, 17, 3), drawn(9, 17, 3)
    torch.testing.assert_close(graph(*other), REUSES[name].changed(*other))


@every_reuse
def test_every_such_rewrite_says_what_it_is(name: str) -> None:
    one = REUSES[name]
    assert one.paper and one.notes and one.licence and one.cost and one.roles == {"vision"}
    assert one.settings(one.neutral)["share"] == 1.0
