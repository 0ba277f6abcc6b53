"""The decompositions compute what torch's operators compute: 1 s."""

from __future__ import annotations

import pytest
import torch

from tokopt.targets.mlir.decompositions import (
    cumsum,
    equals,
    gelu,
    layer_norm,
    masked_scatter,
    scatter,
    scatter_add,
    sort,
    topk,
)

aten = torch.ops.aten


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_a_sort_is_stable_and_puts_nan_where_torch_does(descending: bool, dim: int) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 4, (5, 6, 7)).float()
    x[1, 2, 3] = x[1, 2, 5] = torch.nan
    x[0, 1, 2] = -torch.inf
    want = torch.sort(x, dim=dim, descending=descending, stable=True)
    values, order = sort(x, dim, descending)
    assert torch.equal(order, want.indices)
    assert torch.equal(values.nan_to_num(9), want.values.nan_to_num(9))
    whole = torch.randint(-4, 4, (5, 6, 7))
    assert torch.equal(sort(whole, dim, descending)[0], whole.sort(dim, descending).values)
    distinct = torch.randperm(5 * 6 * 7).view(5, 6, 7).float()
    best = distinct.topk(3, dim, descending)
    values, order = topk(distinct, 3, dim, descending)
    assert torch.equal(values, best.values) and torch.equal(order, best.indices)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 33])
def test_a_running_sum_is_torch_s_also_of_booleans(size: int) -> None:
    torch.manual_seed(0)
    x = torch.randint(-5, 5, (3, size, 2))
    assert torch.equal(cumsum(x, 1), x.cumsum(1))
    assert torch.equal(cumsum(x > 0, -2), (x > 0).cumsum(1))


@pytest.mark.parametrize("shape", [(2, 5, 1), (2, 5, 3), (5, 1)])
def test_rows_or_elements_are_written_where_the_mask_is_true(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, source = torch.randn(2, 5, 3), torch.randn(10, 3)
    for mask in (torch.rand(shape) > 0.5, torch.zeros(shape, dtype=torch.bool)):
        assert torch.equal(masked_scatter(x, mask, source), x.masked_scatter(mask, source))
    rows = (torch.rand(2, 5, 1) > 0.5).expand(2, 5, 3)
    assert torch.equal(masked_scatter(x, rows, source), x.masked_scatter(rows, source))


def test_a_scatter_reads_expanded_and_full_indices_and_sources_that_are_longer() -> None:
    torch.manual_seed(0)
    x, source = torch.randn(2, 6, 3), torch.randn(2, 4, 5)
    rows = torch.stack([torch.randperm(6)[:2] for _ in range(2)]).unsqueeze(-1)
    for index in (rows.expand(2, 2, 3), rows.expand(2, 2, 3).contiguous()):
        assert torch.equal(scatter(x, 1, index, source), x.scatter(1, index, source))
        assert torch.equal(scatter(x, -2, index, 7.0), x.scatter(1, index, 7.0))
    assert scatter(x, 1, rows, source) is NotImplemented


def test_a_norm_and_a_comparison_with_minus_infinity_are_torch_s() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(4, 5, 6), torch.randn(6), torch.randn(6)
    got = layer_norm(x, [6], weight, bias, 1e-5)
    for one, other in zip(got, aten.native_layer_norm(x, [6], weight, bias, 1e-5), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    x[0, 0, 0] = -torch.inf
    assert torch.equal(equals(x, -torch.inf), x == -torch.inf)
    assert equals(torch.arange(3), 1.0) is NotImplemented


def test_a_gelu_with_tanh_is_torch_s_and_the_other_stays() -> None:
    x = torch.linspace(-8, 8, 999)
    want = torch.nn.functional.gelu(x, approximate="tanh")
    assert torch.allclose(gelu(x, approximate="tanh"), want, atol=1e-6)
    assert gelu(x) is NotImplemented


@pytest.mark.needs_mlir
def test_iree_computes_the_gelu_that_torch_computes() -> None:
    """torch-mlir's own differs by 5e-5."""
    from tokopt.targets.mlir.importing import imported
    from tokopt.targets.mlir.iree import compiled

    layer, x = torch.nn.GELU(approximate="tanh"), torch.linspace(-8, 8, 999)
    exported = torch.export.export(layer, (x,)).run_decompositions({})
    (got,) = compiled(imported(exported, "linalg-on-tensors").text, "none")([x])
    assert torch.allclose(got, layer(x), atol=2e-6, rtol=0)


def test_a_running_sum_along_a_free_length_is_torch_s() -> None:
    class Sums(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(1)

    n = torch.export.Dim("n", min=1, max=64)
    exported = torch.export.export(Sums(), (torch.ones(2, 5, 3),), dynamic_shapes=({1: n},))
    ours = exported.run_decompositions({aten.cumsum.default: cumsum})
    assert not [node for node in ours.graph.nodes if node.target is aten.cumsum.default]
    for size in (1, 7):
        x = torch.randint(-5, 5, (2, size, 3)).float()
        assert torch.equal(ours.module()(x), x.cumsum(1))


def test_a_scatter_adds_rows_of_one_place_and_leaves_places_without() -> None:
    torch.manual_seed(0)
    x, source = torch.randn(2, 6, 3), torch.randn(2, 9, 3)
    rows = torch.randint(0, 4, (2, 8, 1)).expand(2, 8, 3)  # two places are named by none
    for index in (rows, rows.contiguous(), torch.randint(0, 6, (2, 8, 3))):
        want = x.scatter_add(1, index, source)
        assert torch.allclose(scatter_add(x, 1, index, source), want, atol=1e-6)
        assert torch.allclose(scatter_add(x, -2, index, source), want, atol=1e-6)
    flat, ones = torch.randint(0, 5, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    none = torch.zeros(2, 5, dtype=torch.int64)
    assert torch.equal(scatter_add(none, 1, flat, ones), none.scatter_add(1, flat, ones))
    assert scatter_add(x, 1, rows[:1], source) is NotImplemented
