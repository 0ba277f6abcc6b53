import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testsuite.passes.methods.drawn_taps import draw, drawn_taps
from torch.nn.functional import scaled_dot_product_attention

from tokopt.passes.methods.rows import attention_row, dot, rank_of, relay_attention, share


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 2),
    groups=st.integers(1, 3),
    rows=st.integers(2, 9),
    kind=st.sampled_from(["none", "bool", "float", "one row", "causal"]),
    number=st.integers(-9, 8),
    seed=st.integers(0, 99),
)
def test_a_row_is_the_row_of_the_fused_operator(
    batch: int, kv_heads: int, groups: int, rows: int, kind: str, number: int, seed: int
) -> None:
    number = number % rows if number >= 0 else -1 - (-number - 1) % rows
    heads, width = kv_heads * groups, 4
    query = draw(batch, heads, rows, width, seed=seed)
    key = draw(batch, kv_heads, rows, width, seed=seed + 1)
    mask = None
    if kind == "bool":
        mask = draw(batch, 1, rows, rows, seed=seed + 2) > -0.5
        mask = mask | torch.eye(rows, dtype=torch.bool)
    elif kind == "float":
        mask = draw(1, heads, rows, rows, seed=seed + 2)
        mask[..., 0] = -torch.inf
    elif kind == "one row":
        mask = draw(batch, 1, 1, rows, seed=seed + 2)
    line = None if mask is None else mask[..., 0 if kind == "one row" else number, :]
    found = attention_row(query, key, line, number, 0.3, kind == "causal")
    unit = torch.eye(rows).expand(batch, heads, rows, rows)  # values that show the probabilities
    whole = scaled_dot_product_attention(
        query, key.repeat_interleave(groups, 1), unit, mask, scale=0.3, is_causal=kind == "causal"
    )
    torch.testing.assert_close(found, whole[:, :, number], rtol=1e-5, atol=1e-6)


def test_a_row_in_which_everything_is_masked_is_finite() -> None:
    query = draw(1, 1, 3, 4, seed=0)
    for mask in (torch.zeros(1, 1, 3, dtype=torch.bool), torch.full((1, 1, 3), -torch.inf)):
        found = attention_row(query, query, mask, 1, 1.0, False)
        torch.testing.assert_close(found, torch.full((1, 1, 3), 1 / 3))


def test_half_precision_operands_are_multiplied_in_fp32() -> None:
    query = draw(1, 2, 5, 8, seed=1).bfloat16()
    found = attention_row(query, query, None, 2, 1.0, False)
    expected = (query[:, :, 2:3].float() @ query.float().transpose(-1, -2))[:, :, 0].softmax(-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_query_heads_share_key_heads_in_neighbouring_groups() -> None:
    key = torch.tensor([[[[1.0]], [[10.0]]]])  # two key heads, one row, width 1
    query = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    assert dot(query, key)[0, :, 0].tolist() == [1.0, 2.0, 30.0, 40.0]


def test_without_relay_the_query_is_the_mean_over_rows() -> None:
    layer = drawn_taps(relay=None, heads=1, kv_heads=1, batch=1).layers[0]
    mean = layer.query[0, 0].mean(0)
    expected = torch.softmax(layer.key[0, 0] @ mean * layer.scale, 0)
    torch.testing.assert_close(relay_attention(layer, None)[0], expected)


def test_a_share_sums_to_one_over_candidates_and_is_zero_elsewhere() -> None:
    mass = torch.tensor([[0.5, 0.2, 0.3], [0.0, 0.0, 1.0]])
    allowed = torch.tensor([[False, True, True], [True, True, False]])
    found = share(mass, allowed)
    assert found[0].tolist() == pytest.approx([0.0, 0.4, 0.6])
    assert found[1].tolist() == [0.0, 0.0, 0.0]  # no mass at all: finite, not 0/0


def test_a_rank_counts_candidates_only() -> None:
    allowed = torch.tensor([[True, False, True, True], [False, True, False, True]])
    ranks = rank_of(allowed)
    assert ranks[allowed].tolist() == [0, 1, 2, 0, 1]
