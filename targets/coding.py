"""Coding: rows that leave the windows of caches become codes, between two calls of decode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tokopt.targets.base import Runner
from tokopt.targets.programs import CodedCache, Coder

ROWS = 2
"""The dim of a window that counts its rows, and of coded tensors that counts units of them."""


def coded(
    coders: Sequence[Coder], given: Mapping[str, Tensor], runner: Callable[[Coder], Runner]
) -> dict[str, Tensor]:
    """Return the inputs of decode with all rows coded that need not wait.

    ``given`` are its inputs by name; coded parts that are not among them are empty so far.
    """
    found = dict(given)
    for coder in coders:
        for cache in coder.caches:
            if cache.window in found:
                found.update(_coded(coder, cache, found, runner))
    return found


def rows_of(coders: Sequence[Coder], given: Mapping[str, Tensor], cache: str, dim: int) -> int:
    """Return how many rows a cache has, coded ones included."""
    units = [
        given[next(iter(one.parts.values()))].shape[ROWS] * coder.unit
        for coder in coders
        for one in coder.caches
        if one.window == cache and next(iter(one.parts.values())) in given
    ]
    return given[cache].shape[dim] + sum(units)


def _coded(
    coder: Coder, cache: CodedCache, given: Mapping[str, Tensor], runner: Callable[[Coder], Runner]
) -> dict[str, Tensor]:
    rows = given[cache.window]
    before = {name: given.get(name) for name in cache.parts.values()}
    count = max(rows.shape[ROWS] - coder.waits, 0) // coder.unit
    for spec in coder.signature.outputs:
        name = cache.parts[spec.name]
        if before[name] is None:
            sizes = [rows.shape[0], rows.shape[1], 0, *(int(n) for n in spec.shape[3:])]
            dtype = getattr(torch, spec.dtype)
            before[name] = torch.empty(sizes, dtype=dtype, device=rows.device)
    found = {name: value for name, value in before.items() if value is not None}
    if not count:
        return found
    leaving = count * coder.unit
    (taken,) = coder.signature.inputs
    made = runner(coder)({taken.name: _units(rows[:, :, :leaving], coder.unit)})
    for output, name in cache.parts.items():
        more = made[output].to(rows.device)
        found[name] = torch.cat([found[name], _of_items(more, rows.shape[0])], ROWS)
    return {**found, cache.window: rows[:, :, leaving:].contiguous()}


def _units(rows: Tensor, unit: int) -> Tensor:
    """Return rows ``[B, H, n unit, D]`` as units ``[B n, H, unit, D]``."""
    units = rows.unflatten(ROWS, (rows.shape[ROWS] // unit, unit)).movedim(ROWS, 1)
    return units.flatten(0, 1).contiguous()


def _of_items(units: Tensor, items: int) -> Tensor:
    """Return what units became, ``[B n, H, 1, ...]``, as tensors ``[B, H, n, ...]``."""
    return units.unflatten(0, (items, len(units) // items)).squeeze(3).movedim(1, ROWS)
