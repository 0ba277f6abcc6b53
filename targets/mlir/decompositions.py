"""Decompositions for MLIR: operators that torch-mlir takes to its own dialect, in plain ones.

What it makes of sorts, running sums and scatters is ``tm_tensor``, a dialect that other tools do
not read; variances and comparisons with a number it takes in float64, which TOSA does not have.

Sound: each function is the operator's meaning written out; the tests hold them to torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Table = dict[Any, Callable[..., Any]]


def sort(
    x: Tensor, dim: int = -1, descending: bool = False, *, stable: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Sort by counting, for every row, those before it: n² comparisons and no loop; stable."""
    rows = x.movedim(dim, -1)
    place = torch.arange(rows.shape[-1], device=x.device)
    other, this = rows.unsqueeze(-1), rows.unsqueeze(-2)
    larger, smaller = _larger(other, this), _larger(this, other)
    first, last = (larger, smaller) if descending else (smaller, larger)
    earlier = first | (~last & (place.unsqueeze(-1) < place))
    rank = earlier.to(torch.int64).sum(-2)
    holds = rank.unsqueeze(-2) == place.unsqueeze(-1)
    order = (holds.to(torch.int64) * place).sum(-1)
    if x.is_floating_point():
        values = rows.gather(-1, order)
    else:  # TOSA gathers no int64
        values = (holds.to(x.dtype) * rows.unsqueeze(-2)).sum(-1).to(x.dtype)
    return values.movedim(-1, dim), order.movedim(-1, dim)


def sort_stable(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """Sort as ``sort`` does; its arguments are in another order."""
    return sort(x, dim, descending)


def topk(
    x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Tensor, Tensor]:
    """Take the first ``k`` of a sort; of equal values the lower place (torch leaves it open)."""
    values, order = sort(x, dim, largest)
    return values.narrow(dim, 0, k).contiguous(), order.narrow(dim, 0, k).contiguous()


def cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Add what lies 1, 2, 4, … places before: the running sum in log n steps.

    A free length has no number of steps: there every place sums what is not behind it, n² terms.
    """
    if dtype is None:
        dtype = x.dtype if x.is_floating_point() else torch.int64
    size = x.shape[dim] if x.dim() else 1
    total, step = x.to(dtype), 1
    if not isinstance(size, int):
        rows = total.movedim(dim, -1)
        place = torch.arange(size, device=x.device)
        zero = torch.zeros([], dtype=dtype, device=x.device)
        summed = torch.where(place.unsqueeze(-1) >= place, rows.unsqueeze(-2), zero)
        return summed.sum(-1).movedim(-1, dim)
    while step < size:
        before = total.narrow(dim, 0, size - step)
        nothing = torch.zeros_like(total.narrow(dim, 0, step))
        total, step = total + torch.cat([nothing, before], dim), 2 * step
    return total


def masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """Look the n-th true place's row of ``source`` up, where the mask is one per row, or element.

    ``source`` is consumed in row-major order: under a mask that is the same along the last dim the
    n-th true row takes its n-th row.
    """
    whole_rows = mask.dim() == x.dim() and (mask.shape[-1] == 1 or mask.stride(-1) == 0)
    whole_rows = whole_rows and source.dim() > 0 and bool(source.shape[-1] == x.shape[-1])
    if not whole_rows:
        mask = mask.expand(x.shape).unsqueeze(-1)
        return masked_scatter(x.unsqueeze(-1), mask, source.reshape(-1, 1)).squeeze(-1)
    flags = mask[..., :1].expand([*x.shape[:-1], 1])
    turn = cumsum(flags.reshape(-1).to(torch.int64), 0)
    rows = source.reshape(-1, source.shape[-1])
    found = rows.index_select(0, (turn - 1).clamp(0, rows.shape[0] - 1)).reshape(x.shape)
    return torch.where(flags, found, x)


def scatter(x: Tensor, dim: int, index: Tensor, source: Tensor | float) -> Any:
    """Ask of every place which entry of ``index`` names it, and take that one's value.

    An index that is expanded (stride 0) along other dims is read once along them.  Where ``index``
    is smaller than ``x`` along another dim the operator stays as it is.
    """
    dim, last = dim % x.dim(), x.dim() - 1
    others = [d for d in range(x.dim()) if d != dim]
    if index.dim() != x.dim() or any(index.shape[d] != x.shape[d] for d in others):
        return NotImplemented
    short = index
    for d in others:
        if index.stride(d) == 0:
            short = short.narrow(d, 0, 1)
    entries = torch.arange(index.shape[dim], device=x.device)
    names = short.movedim(dim, last).unsqueeze(-2)
    places = torch.arange(x.shape[dim], device=x.device).unsqueeze(-1)
    entry = torch.where(names == places, entries, -1).amax(-1).movedim(last, dim)
    hit = (entry >= 0).expand(x.shape)
    if not isinstance(source, Tensor):
        return torch.where(hit, torch.full_like(x, source), x)
    source = source[tuple(slice(size) for size in index.shape)]
    return torch.where(hit, source.gather(dim, entry.clamp(min=0).expand(x.shape)), x)


def scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    """Ask of every place which entries of ``index`` name it, and add these up.

    Where ``index`` is expanded along the features behind ``dim`` that is one product of matrices,
    of numbers that are finite.
    Where it is smaller than ``x`` along another dim the operator stays as it is.
    """
    dim, last = dim % x.dim(), x.dim() - 1
    others = [d for d in range(x.dim()) if d != dim]
    if index.dim() != x.dim() or any(index.shape[d] != x.shape[d] for d in others):
        return NotImplemented
    places = torch.arange(x.shape[dim], device=x.device).unsqueeze(-1)
    source = source[tuple(slice(size) for size in index.shape)]
    if dim == last - 1 and index.stride(last) == 0 and x.is_floating_point():
        names = index.select(last, 0).unsqueeze(-2) == places
        return x + names.to(x.dtype) @ source
    names = index.movedim(dim, last).unsqueeze(-2) == places
    zero = torch.zeros([], dtype=x.dtype, device=x.device)
    sums = torch.where(names, source.movedim(dim, last).unsqueeze(-2), zero).sum(-1)
    return x + sums.to(x.dtype).movedim(last, dim)


def layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise in float32, or wider where ``x`` is."""
    dims = list(range(-len(shape), 0))
    wide = x if x.dtype is torch.float64 else x.to(torch.float32)
    mean = wide.mean(dims, keepdim=True)
    centred = wide - mean
    scale = torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
    result = centred * scale
    result = result if weight is None else result * weight
    result = result if bias is None else result + bias
    return result.to(x.dtype), mean, scale


def gelu(x: Tensor, *, approximate: str = "none") -> Any:
    """Write the form with tanh out: torch-mlir's is off by 5e-5, its constants are rounded."""
    if approximate != "tanh":
        return NotImplemented
    inner = (x + 0.044715 * x * x * x) * math.sqrt(2 / math.pi)
    return 0.5 * x * (1 + torch.tanh(inner))


def equals(x: Tensor, value: float) -> Any:
    """Compare in the type of ``x``: torch-mlir goes through float64."""
    if not x.is_floating_point():
        return NotImplemented
    return x == torch.full([], value, dtype=x.dtype, device=x.device)


def _larger(one: Tensor, other: Tensor) -> Tensor:
    """Compare as sorts do: NaN is larger than anything else."""
    larger = one > other
    return larger | (one.isnan() & ~other.isnan()) if one.is_floating_point() else larger


OURS: Table = {
    aten.gelu.default: gelu,
    aten.eq.Scalar: equals,
    aten.topk.default: topk,
    aten.sort.default: sort,
    aten.sort.stable: sort_stable,
    aten.cumsum.default: cumsum,
    aten.masked_scatter.default: masked_scatter,
    aten.scatter.src: scatter,
    aten.scatter.value: scatter,
    aten.scatter_add.default: scatter_add,
    aten.native_layer_norm.default: layer_norm,
}
