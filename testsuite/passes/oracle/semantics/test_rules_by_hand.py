"""Rules on calls that deleting rows cannot describe: movements, merges, and what is refused."""

from __future__ import annotations

import pytest
import torch
from testsuite.passes.oracle.semantics.one_call import apply_rule, aten
from torch import Tensor, fx

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.oracle.dead import Marked, bury
from tokopt.passes.oracle.semantics.table import find_rule

NAN = torch.nan
ALIVE = torch.tensor([True, False, True, True, False, True])
N, D = 6, 4


def rows(*lead: int) -> Tensor:
    """Rows of which 1 and 4 are dropped, ``[*lead, 6, 4]``."""
    return torch.randn(*lead, N, D).masked_fill(~ALIVE[:, None], NAN)


def same(found: Tensor, want: Tensor) -> bool:
    return torch.equal(found.nan_to_num(99), want.nan_to_num(99))


def test_an_index_takes_the_mark_to_where_the_row_goes() -> None:
    x, order = rows(), torch.tensor([4, 0, 3, 1, 5, 2])
    moved = apply_rule(aten.index.Tensor, x, [order])
    assert same(moved, x[order]) and moved.isnan().all(-1).tolist() == (~ALIVE[order]).tolist()


def test_an_index_takes_the_mark_of_an_integer_along() -> None:
    order = torch.tensor([4, 0, 3, 1, 5, 2])
    moved = apply_rule(aten.index_select.default, Marked(torch.arange(N), ~ALIVE), 0, order)
    assert torch.equal(moved.tensor, order) and torch.equal(moved.dead, ~ALIVE[order])


def test_what_a_dropped_row_looks_up_in_a_weight_is_dropped() -> None:
    table, chosen = torch.randn(3, D, 2), torch.tensor([0, 2, -1, 1, 0, 1])
    found = apply_rule(aten.index.Tensor, table, [Marked(chosen, ~ALIVE)], constants=(0,))
    assert same(found, table[chosen].masked_fill(~ALIVE[:, None, None], NAN))


def test_a_pair_of_positions_is_dropped_where_either_is() -> None:
    table, rows, columns = torch.randn(5, N, 7), torch.arange(N)[:, None] % 5, torch.arange(3)
    given = [Marked(rows, ~ALIVE[:, None]), None, Marked(columns, columns == 1)]
    found = apply_rule(aten.index.Tensor, table, given, constants=(0,))
    gone = ~ALIVE[:, None, None] | (columns == 1)[:, None]
    assert same(found, table[rows, :, columns].masked_fill(gone, NAN))


def test_rows_looked_up_by_a_dropped_row_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="positions computed from them"):
        apply_rule(aten.index.Tensor, rows(), [Marked(torch.arange(N), ~ALIVE)])


def test_the_merge_writes_dropped_rows_among_the_text() -> None:
    text, visual = torch.randn(1, 9, D), rows()
    mask = torch.tensor([0, 1, 1, 1, 0, 1, 1, 1, 0]).bool()[None, :, None]
    merged = apply_rule(aten.masked_scatter.default, text, mask, visual)
    assert same(merged, text.masked_scatter(mask, visual))
    assert merged.isnan().all(-1)[0].nonzero().flatten().tolist() == [2, 6]


def test_where_between_two_streams_goes_by_what_is_chosen() -> None:
    visual, text, mask = rows(), torch.randn(N, D), torch.tensor([1, 1, 0, 0, 0, 1]).bool()[:, None]
    merged = apply_rule(aten.where.self, mask, visual, text)
    assert merged.isnan().all(-1).tolist() == [False, True, False, False, False, False]


def test_rows_joined_as_rows_keep_their_own_marks() -> None:
    joined = apply_rule(aten.cat.default, [torch.randn(2, D), rows()], 0, rows=(0,))
    assert joined.isnan().all(-1).nonzero().flatten().tolist() == [3, 6]


def test_a_window_that_was_dropped_does_not_take_its_neighbours_along() -> None:
    joined = apply_rule(aten.cat.default, [torch.full((2, D), NAN), rows()], 0, rows=(0,))
    assert int(joined.isnan().all(-1).sum()) == 4


def test_a_row_that_an_earlier_layer_still_had_is_dropped_where_features_are_joined() -> None:
    joined = apply_rule(aten.cat.default, [torch.randn(N, D), rows()], -1)
    assert torch.equal(joined.isnan(), (~ALIVE)[:, None].expand(N, 2 * D))


def test_rows_put_around_dropped_ones_are_alive() -> None:
    padded = apply_rule(aten.constant_pad_nd.default, rows(), [0, 0, 1, 0], 0.0, rows=(0,))
    assert padded.isnan().all(-1).nonzero().flatten().tolist() == [2, 5]


def test_a_complex_pair_is_dropped_as_a_whole() -> None:
    pairs = apply_rule(aten.view_as_complex.default, rows().unflatten(-1, (2, 2)))
    back = apply_rule(aten.view_as_real.default, pairs)
    assert torch.equal(back.isnan(), (~ALIVE)[:, None, None].expand(N, 2, 2))


def half_dead() -> Tensor:
    return torch.randn(N, D).masked_fill(torch.arange(D) == 0, NAN)


REFUSED = [
    ("topk of rows", aten.topk.default, lambda: (rows(), 2, 0)),
    ("sort of rows", aten.sort.default, lambda: (rows(), 0)),
    ("argmax over rows", aten.argmax.default, lambda: (rows(), 0)),
    ("max over rows with positions", aten.max.dim, lambda: (rows(), 0)),
    ("cumsum over rows", aten.cumsum.default, lambda: (rows(), 0)),
    ("norm over rows", aten.layer_norm.default, lambda: (rows().T, [N])),
    ("convolution", aten.conv1d.default, lambda: (rows().T[None], torch.randn(2, D, 3))),
    ("strided convolution", aten.conv1d.default,
     lambda: (rows().T[None], torch.randn(2, D, 1), None, 2)),
    ("weights over rows", aten.linear.default, lambda: (rows().T, torch.randn(2, N))),
    ("weights over rows from the left", aten.matmul.default, lambda: (torch.randn(2, N), rows())),
    ("half a row", aten.linear.default, lambda: (half_dead(), torch.randn(2, D))),
    ("other rows", aten.matmul.default, lambda: (rows().T, rows().roll(1, 0))),
    ("other rows by letters", aten.einsum.default,
     lambda: ("nd,ne->de", [rows(), torch.randn(N, 2)])),
    ("one operand alone by letters", aten.einsum.default,
     lambda: ("nd,e->de", [rows(), torch.randn(2)])),
    ("letters left implicit", aten.einsum.default, lambda: ("nd,de", [rows(), torch.randn(D, 2)])),
    ("values without keys", aten.scaled_dot_product_attention.default,
     lambda: (rows(), torch.randn(N, D), rows())),
    ("half a key", aten.scaled_dot_product_attention.default,
     lambda: (torch.randn(N, D), half_dead(), half_dead())),
    ("a mask from elsewhere", aten.scaled_dot_product_attention.default,
     lambda: (*[torch.randn(N, D)] * 3, rows()[:, :1])),
    ("dropout in attention", aten.scaled_dot_product_attention.default,
     lambda: (*[rows()] * 3, None, 0.1)),
    ("positions from rows", aten.index.Tensor,
     lambda: (torch.randn(9, D), [bury(torch.arange(N), ~ALIVE)])),
    ("rows added up", aten.index_put.default,
     lambda: (torch.randn(2, D), [torch.tensor([0, 1] * 3)], rows(), True)),
    ("norm that counts zeros", aten.linalg_vector_norm.default, lambda: (rows(), 0, [0])),
]  # fmt: skip


@pytest.mark.parametrize(("target", "args"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_reading_rows_by_position_is_refused_and_named(target, args) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UnsupportedError) as error:
        apply_rule(target, *args())
    assert target.__name__.split(".")[0] in str(error.value)


EXPERTS = Marked(torch.tensor([[0], [1], [2], [0], [1], [2]]), ~ALIVE[:, None])


def test_positions_along_a_dim_of_experts_are_each_rows_own() -> None:
    chosen = apply_rule(aten.gather.default, torch.randn(N, D), 1, EXPERTS, rows=(0,))
    assert chosen.isnan().flatten().tolist() == (~ALIVE).tolist()
    into = torch.zeros(N, D)
    routed = apply_rule(aten.scatter.src, into, 1, EXPERTS, torch.ones(N, 1), rows=(0,))
    assert routed.isnan().all(-1).tolist() == (~ALIVE).tolist()
    assert same(routed[ALIVE], into.scatter(1, EXPERTS.tensor, 1.0)[ALIVE])


def test_positions_among_rows_that_were_computed_from_dropped_rows_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="positions computed from them"):
        apply_rule(aten.scatter.src, rows(), 0, EXPERTS, torch.ones(N, 1), rows=(0,))


def test_a_window_of_dropped_rows_pools_to_a_dropped_row() -> None:
    x = torch.randn(1, D, 4, 4)
    x[:, :, 2:, :2] = NAN
    kernel = torch.randn(3, D, 2, 2)
    for target, args in (
        (aten.avg_pool2d.default, (x, [2, 2])),
        (aten.max_pool2d.default, (x, [2, 2])),
        (aten.adaptive_avg_pool2d.default, (x, [2, 2])),
        (aten.conv2d.default, (x, kernel, torch.randn(3), [2, 2])),
    ):
        found = apply_rule(target, *args)
        assert found.isnan().all(1)[0].tolist() == [[False, False], [True, False]]
        x[:, :, 2, 2] = NAN
        with pytest.raises(UnsupportedError, match="others not"):
            apply_rule(target, *args)
        x[:, :, 2, 2] = 0.0


def test_one_window_over_everything_is_a_mean_of_what_is_there() -> None:
    x = rows(1).mT
    found = apply_rule(aten.adaptive_avg_pool1d.default, x, [1])
    assert torch.allclose(found[..., 0], x.nanmean(-1))


def test_an_operator_nobody_wrote_a_rule_for_has_none() -> None:
    for target in (aten.scatter_add.default, aten.max_unpool2d.default, aten.fft_fft.default):
        assert find_rule(fx.Graph().call_function(target, ())) is None
