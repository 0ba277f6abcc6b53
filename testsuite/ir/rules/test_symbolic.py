"""Rules on sizes that are symbols: the same claims, where they can be made for every size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from tokopt.ir.axis import Axis
from tokopt.ir.dims import Dims, infer_dims


class Calls(nn.Module):
    def __init__(self, compute: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.compute(x, y)


def inferred(
    compute: Callable[[Tensor, Tensor], Tensor],
) -> tuple[ExportedProgram, Dims, list[Axis], list[Axis], list[Axis]]:
    """Infer a program of ``x [b, s, 6]`` and ``y [b, 5, 6]`` with symbols b and s."""
    b, s = Dim("b", min=2, max=64), Dim("s", min=2, max=64)
    shapes = {"x": {0: b, 1: s}, "y": {0: b}}
    given = torch.randn(3, 4, 6), torch.randn(3, 5, 6)
    program = export(Calls(compute), given, dynamic_shapes=shapes)
    dims = infer_dims(program)
    x, y = program.graph.find_nodes(op="placeholder")
    out = program.graph.output_node().args[0][0]
    return program, dims, dims.axes[x], dims.axes[y], dims.axes[out]


def test_a_flattened_batch_is_taken_apart_again() -> None:
    _, _, x, _, out = inferred(lambda x, y: x.flatten(0, 1).relu().view(y.shape[0], -1, 6))
    assert [a.root for a in out] == [a.root for a in x]


def test_heads_are_split_off_and_joined() -> None:
    _, _, x, _, out = inferred(
        lambda x, y: x.unflatten(-1, (2, 3)).transpose(1, 2).flatten(0, 1).sum(-1)
    )
    factors = out[0].root.factors
    assert factors[0].root is x[0].root and factors[1].root is x[2].root.factors[0].root
    assert out[1].root is x[1].root


def test_rows_in_front_of_symbolic_ones_are_parts() -> None:
    _, _, x, y, out = inferred(lambda x, y: torch.cat([y, x], 1).relu())
    assert out[1].leaves() == [y[1].root, x[1].root]


def test_a_slice_behind_a_known_count_is_the_rest() -> None:
    _, _, x, _, out = inferred(lambda x, y: torch.cat([y, x], 1)[:, 5:])
    assert out[1].root is x[1].root


def test_the_last_rows_are_counted_from_the_end() -> None:
    _, _, _, y, out = inferred(lambda x, y: torch.cat([x, y], 1)[:, -5:])
    assert out[1].root is y[1].root


def test_a_range_whose_place_depends_on_a_symbol_is_mixed() -> None:
    program, dims, _, _, _ = inferred(lambda x, y: torch.cat([y, x, y], 1)[:, 6:8])
    slices = [n for n in program.graph.nodes if n.name.startswith("slice")]
    mixed = [m for n in slices for m in dims.uses[n].mixes]
    assert [m.dim for m in mixed] == [1] and "symbolic" in mixed[0].reason


def test_an_axis_expanded_to_a_symbol_is_the_symbols() -> None:
    _, _, x, _, out = inferred(lambda x, y: x + y[:, :1].expand(x.shape[0], x.shape[1], 6))
    assert out[1].root is x[1].root and out[0].root is x[0].root


@pytest.mark.parametrize("drop", [[2], [0, 3], [1, 2, 4]])
def test_rows_missing_from_causal_attention_are_as_good_as_masked(drop: list[int]) -> None:
    """What link and fold say under ``is_causal``, where permuting rows is no law."""
    sdpa = nn.functional.scaled_dot_product_attention
    q, k, v = (torch.randn(2, 3, 6, 4, dtype=torch.float64) for _ in range(3))
    stay = torch.tensor([n for n in range(6) if n not in drop])
    seen = torch.ones(6, 6).tril().bool()
    seen[:, drop] = False
    masked = sdpa(q, k, v, seen)[:, :, stay]
    short = sdpa(*(t[:, :, stay] for t in (q, k, v)), is_causal=True)
    assert torch.allclose(masked, short, atol=1e-12)
