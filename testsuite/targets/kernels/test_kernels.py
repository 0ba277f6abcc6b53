"""Laws over the kernels: in Triton's interpreter each does what its dialect operator means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from testsuite.ir.dialect.cases import CASES
from testsuite.ir.dialect.test_ops import assert_means
from testsuite.passes.families import rewritten
from torch import Tensor

from tokopt.ir.dialect import OPS
from tokopt.targets.lowerings.aotinductor import KERNELS

pytest.importorskip("triton")
from tokopt.targets.kernels.registry import kernels, with_kernels

NAMES = sorted(KERNELS)
EVERY = [
    *((name, f"sample {i}", s) for name in NAMES for i, s in enumerate(OPS[name].samples())),
    *((name, label, case) for name in NAMES for label, case in CASES[name].items()),
]


def direct(kernel: Any) -> Any:
    return kernel


def test_the_target_says_which_kernels_there_are_and_each_is_checked() -> None:
    assert sorted(kernels()) == NAMES


@pytest.mark.parametrize(
    ("name", "args"), [pytest.param(n, a, id=f"{n}: {i}") for n, i, a in EVERY]
)
def test_a_kernel_does_what_its_operator_means(name: str, args: tuple[Any, ...]) -> None:
    assert_means(name, kernels()[name].module.launch(direct, *args), args)


@pytest.mark.parametrize("rows", [1023, 1024, 1025, 2500])
def test_select_counts_across_its_blocks(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    scores = torch.randint(-6, 6, [2, rows], generator=generator).float()
    free = torch.rand(2, rows, generator=generator) > 0.1
    for total in (rows // 3, rows - 1):
        got = kernels()["select"].module.launch(direct, scores, free, total)
        order = np.lexsort([np.broadcast_to(np.arange(rows), [2, rows]), -scores, free], axis=-1)
        np.testing.assert_array_equal(got, np.sort(order[:, :total]))


@pytest.mark.parametrize(
    ("rows", "columns", "count", "dtype"),
    [(1023, 7, 5, torch.float32), (1025, 257, 3, torch.float16), (40, 256, 40, torch.bfloat16)],
)
def test_segmented_mean_crosses_its_blocks_and_gives_the_same_bits_twice(
    rows: int, columns: int, count: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(rows)
    values = torch.randn(2, rows, columns, generator=generator).to(dtype)
    target = torch.randint(-1, count + 1, [2, rows], generator=generator)
    weight = torch.rand(2, rows, generator=generator).where(target % 3 > 0, 0.0)
    args = (values, target, weight, count)
    kernel = kernels()["segmented_mean"].module
    found = kernel.launch(direct, *args)
    assert_means("segmented_mean", found, args)
    assert torch.equal(kernel.launch(direct, *args), found)


@pytest.mark.parametrize(
    ("heads", "own", "rows", "keys", "width", "dtype"),
    [(6, 2, 1, 65, 16, torch.float32), (4, 4, 17, 64, 24, torch.float16),
     (8, 1, 5, 200, 40, torch.bfloat16)],
)  # fmt: skip
def test_attention_rows_crosses_its_blocks_in_every_dtype(
    heads: int, own: int, rows: int, keys: int, width: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(keys)
    drawn: Callable[..., Tensor] = lambda *s: torch.randn(s, generator=generator).to(dtype)  # noqa: E731
    args = (
        drawn(2, heads, rows, width),
        drawn(2, own, keys, width),
        drawn(rows, keys).float(),
        0.3,
    )
    assert_means("attention_rows", kernels()["attention_rows"].module.launch(direct, *args), args)


@pytest.mark.parametrize(
    ("heads", "own", "rows", "width", "forms", "dtype"),
    [
        (6, 2, 1, 24, ("int8", "int4"), torch.float32),
        (2, 2, 20, 16, ("int4", "int8"), torch.bfloat16),
        (4, 2, 3, 16, ("fp8", "fp8"), torch.float16),
        (2, 1, 140, 16, ("int8", "fp8"), torch.float32),
    ],
)
def test_cached_attention_joins_its_blocks_of_old_and_new_rows_in_every_type(
    heads: int, own: int, rows: int, width: int, forms: tuple[str, str], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(rows)

    def codes(form: str) -> Tensor:
        shape = [2, own, 290, width // (2 if form == "int4" else 1)]
        if form == "fp8":
            return (torch.randn(shape, generator=generator) * 99).to(torch.float8_e4m3fn)
        if form == "int8":
            return torch.randint(-128, 128, shape, generator=generator).to(torch.int8)
        return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    scales = [drawn(1, own, 1, width).abs() / (8 if one == "int4" else 128) for one in forms]
    bias = torch.zeros(2, 1, 1, 290).masked_fill(torch.arange(290) < 130, float("-inf"))
    rows_of = [drawn(2, n, rows, width).to(dtype) for n in (heads, own, own)]
    args = (
        *(*rows_of, codes(forms[0]), codes(forms[1]), scales[0], drawn(1, own, 1, width)),
        *(scales[1], drawn(1, own, 1, width), bias, 0.3),
    )
    got = kernels()["cached_attention"].module.launch(direct, *args)
    wanted = OPS["cached_attention"].overload(*args)
    near = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert got.dtype == dtype
    torch.testing.assert_close(got, wanted, rtol=near, atol=near)


@pytest.mark.parametrize("text", ["vision:end visionzip 9", "vision:2 tome 18"])
def test_what_is_folded_is_the_kernels_segmented_mean(text: str) -> None:
    folded = with_kernels(rewritten("handvit_short", text).applied.exported)
    called = [str(node.target) for node in folded.graph.nodes]
    assert called.count("tokopt_triton.segmented_mean.default") == 1


def test_moved_bytes_are_those_of_the_operands_and_the_result() -> None:
    for name, _, args in EVERY:
        result = OPS[name].overload(*args)
        everything = [*(a for a in args if isinstance(a, Tensor)), result]
        assert kernels()[name].module.moved_bytes(*args) == sum(t.nbytes for t in everything)


def test_a_program_with_kernels_has_them_and_no_other_dialect_call_and_computes_the_same() -> None:
    class Scored(torch.nn.Module):
        def forward(self, x: Tensor, free: Tensor) -> Tensor:
            row = OPS["attention_rows"].overload(x[:, :, :1], x, None, 0.5)
            return OPS["select"].overload(row.mean((1, 2)), free, 3)

    given = (torch.randn(2, 2, 7, 4), torch.ones(2, 7, dtype=torch.bool))
    plain = torch.export.export(Scored(), given)
    swapped = with_kernels(plain)
    called = {str(node.target) for node in swapped.graph.nodes if node.op == "call_function"}
    assert {"tokopt_triton.select.default", "tokopt_triton.attention_rows.default"} <= called
    assert not any(one.startswith("tokopt.") for one in called)
    assert any("tokopt.select" in str(node.target) for node in plain.graph.nodes)
    assert torch.equal(swapped.module()(*given), plain.module()(*given))
