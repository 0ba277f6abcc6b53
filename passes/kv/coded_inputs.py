"""Coded inputs: what was coded of a cache in blocks, as inputs of the program that reads it.

The cache's own input is left its window, so its free size s counts fewer rows than before: where
the program had ``s`` rows it has ``s + unit * units``, with a new free size for the units.  Caches
that had one size have it still: they are windows of equally many rows with as many units.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.lengths import length_of
from tokopt.ir.new_inputs import add_input, new_size
from tokopt.passes.kv.kept import Kept
from tokopt.passes.kv.windowed import Windowed

ROWS = 2
"""The dim of a cache that counts its rows."""


def add_coded(
    draft: ExportedProgram, caches: Mapping[fx.Node, Kept], mode: FakeTensorMode
) -> dict[str, dict[str, fx.Node]]:
    """Give a draft the coded tensors of its caches; return them by cache and name.

    The inputs' recorded sizes are those with coded rows beside the windows; what is computed of
    them is not yet (``compute_values``).  Raises ``UnsupportedError`` for a cache of constant size
    and for caches of one size whose blocks have different sizes.
    """
    units: dict[sympy.Symbol, tuple[int, torch.SymInt]] = {}
    first: dict[sympy.Symbol, Windowed] = {}
    split = {cache: kept for cache, kept in caches.items() if kept.windowed is not None}
    for cache, kept in split.items():
        symbol = _symbol(cache)
        format = kept.windowed
        assert format is not None
        if symbol not in units:
            first[symbol] = format
            units[symbol] = (format.unit, new_size(mode, f"units_of_{cache.name}"))
        if (first[symbol].unit, first[symbol].waits) != (format.unit, format.waits):
            raise UnsupportedError(
                f"{format.text} and {first[symbol].text} let other rows wait, in caches of as many",
                where=cache.name,
                expected="formats of one window and one group, or that store each row alone",
            )
    _free(draft, units)
    for node in draft.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if isinstance(value, Tensor) and node not in split:
            node.meta["val"] = _longer(value, units, mode)
    found: dict[str, dict[str, fx.Node]] = {cache.name: {} for cache in caches}
    for cache, kept in split.items():
        unit, count = units[_symbol(cache)]
        for name, value in _coded(kept, cache.meta["val"], unit * count, mode).items():
            made = add_input(draft, kept.input_of(cache.name, name), value)
            found[cache.name][name] = made
    return found


def suppressed(mode: FakeTensorMode) -> AbstractContextManager[Any]:
    """Ask of sizes without leaving guards: what a program is to be run with is not known here."""
    environment = mode.shape_env
    return torch.no_grad() if environment is None else environment.suppress_guards()


def _symbol(cache: fx.Node) -> sympy.Symbol:
    length = length_of(cache.meta["val"].shape[ROWS])
    if not isinstance(length, sympy.Symbol):
        raise UnsupportedError(
            f"the cache has {length} rows, and blocks of it are coded as it grows",
            where=cache.name,
            expected="a cache of free length",
        )
    return length


def _longer(
    value: Tensor, units: Mapping[sympy.Symbol, tuple[int, torch.SymInt]], mode: FakeTensorMode
) -> Tensor:
    """Return a recorded input with the coded rows in its sizes as well."""
    sizes = [_with_coded(size, units) for size in value.shape]
    if all(new is old for new, old in zip(sizes, value.shape, strict=True)):
        return value
    with mode:
        return torch.empty(sizes, dtype=value.dtype, device=value.device)


def _with_coded(
    size: int | torch.SymInt, units: Mapping[sympy.Symbol, tuple[int, torch.SymInt]]
) -> int | torch.SymInt:
    """Return a size that is linear in those of caches with each of them longer."""
    length = length_of(size)
    for symbol, (unit, count) in units.items():
        if not isinstance(length, int) and symbol in length.free_symbols:
            each = sympy.diff(length, symbol)
            if not each.is_Integer:
                raise UnsupportedError(f"a size is {length}, of a cache of {symbol} rows")
            size = size + int(each) * unit * count
    return size


def _coded(
    kept: Kept, rows: Tensor, count: torch.SymInt, mode: FakeTensorMode
) -> dict[str, Tensor]:
    """Return what so many rows become, as recorded values."""
    with mode:
        shape = (rows.shape[0], rows.shape[1], count, rows.shape[3])
        waiting = kept.handed(torch.empty(shape, dtype=rows.dtype, device=rows.device))
        return {name: value.contiguous() for name, value in kept.block(waiting).items()}


def _free(draft: ExportedProgram, units: Mapping[sympy.Symbol, tuple[int, torch.SymInt]]) -> None:
    """State the range of each window's size, which may be none, and of its units."""
    ranges = dict(draft.range_constraints)
    for symbol, (unit, count) in units.items():
        most = ranges[symbol].upper if symbol in ranges else int_oo
        of_units = most // unit if most.is_Integer else int_oo
        ranges[symbol] = ValueRanges(0, most)
        ranges[length_of(count)] = ValueRanges(0, of_units)
    draft._range_constraints = ranges
