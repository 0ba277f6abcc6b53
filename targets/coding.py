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

    ``given`` are its inputs by name, with the saliences that it gave; coded parts that are not
    among them are empty so far.
    """
    found = dict(given)
    for coder in coders:
        for cache in coder.caches:
            if cache.window in found:
                found.update(_coded(coder, cache, given, runner))
    for name in saliences(coders):
        found.pop(name, None)
    return found


def saliences(coders: Sequence[Coder]) -> set[str]:
    """Return the outputs of decode that its coders take."""
    every = (cache.salience for coder in coders for cache in coder.caches)
    return {name for name in every if name is not None}


def rows_of(coders: Sequence[Coder], given: Mapping[str, Tensor], cache: str, dim: int) -> int:
    """Return how many rows a cache has, coded ones included."""
    rows = [
        given[name].shape[ROWS] * each
        for coder in coders
        for one in coder.caches
        if one.window == cache
        for name, each in one.rows.items()
        if name in given
    ]
    return given[cache].shape[dim] + sum(rows)


def _coded(
    coder: Coder, cache: CodedCache, given: Mapping[str, Tensor], runner: Callable[[Coder], Runner]
) -> dict[str, Tensor]:
    rows = given[cache.window]
    before = {name: given.get(name) for name in cache.parts.values()}
    count = max(rows.shape[ROWS] - coder.waits, 0) // coder.unit
    for spec in coder.signature.outputs:
        name = cache.parts[spec.name]
        if before[name] is None:
            sizes = [rows.shape[0], int(spec.shape[1]), 0, *(int(n) for n in spec.shape[3:])]
            dtype = getattr(torch, spec.dtype)
            before[name] = torch.empty(sizes, dtype=dtype, device=rows.device)
    found = {name: value for name, value in before.items() if value is not None}
    if not count:
        return found
    leaving = count * coder.unit
    taken = {"rows": _units(rows[:, :, :leaving], coder.unit)}
    if cache.salience is not None:
        ranks = given[cache.salience][:, :, :leaving].to(rows.device)
        taken["salience"] = _units(ranks, coder.unit)
    made = runner(coder)(taken)
    for output, name in cache.parts.items():
        more = made[output].to(rows.device)
        found[name] = torch.cat([found[name], _of_items(more, rows.shape[0])], ROWS)
    return {**found, cache.window: rows[:, :, leaving:].contiguous()}


def _units(rows: Tensor, unit: int) -> Tensor:
    """Return rows ``[B, H, n unit, ...]`` as units ``[B n, H, unit, ...]``."""
    units = rows.unflatten(ROWS, (rows.shape[ROWS] // unit, unit)).movedim(ROWS, 1)
    return units.flatten(0, 1).contiguous()


def _of_items(units: Tensor, items: int) -> Tensor:
    """Return what units became, ``[B n, H, m, ...]``, as tensors ``[B, H, n m, ...]``."""
    by_item = units.unflatten(0, (items, len(units) // items)).movedim(1, ROWS)
    return by_item.flatten(ROWS, ROWS + 1)
