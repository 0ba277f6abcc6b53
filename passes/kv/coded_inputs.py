"""Coded inputs: what was coded of a cache in blocks, as inputs of the program that reads it.

The cache's own input is left its window, so its free size s counts fewer rows than before: where
the program had ``s`` rows it has ``s + group * groups``, with a new free size for the groups, or
for whatever else the format counts (``Windowed.counts``).  Caches that had one size have it still:
they are windows of equally many rows with as many groups.
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
from tokopt.ir.new_inputs import HINT, add_input, new_size
from tokopt.passes.kv.kept import Kept
from tokopt.passes.kv.windowed import Windowed

ROWS = 2
"""The dim of a cache that counts its rows."""

Sizes = dict[str, tuple[int, torch.SymInt]]
"""What is free in the sizes of a cache's coded tensors: the rows that each stands for, and it."""


def add_coded(
    draft: ExportedProgram, caches: Mapping[fx.Node, Kept], mode: FakeTensorMode
) -> dict[str, dict[str, fx.Node]]:
    """Give a draft the coded tensors of its caches; return them by cache and name.

    The inputs' recorded sizes are those with coded rows beside the windows; what is computed of
    them is not yet (``compute_values``).  Raises ``UnsupportedError`` for a cache of constant size
    and for caches of one size whose blocks have different sizes.
    """
    sizes: dict[sympy.Symbol, Sizes] = {}
    first: dict[sympy.Symbol, Windowed] = {}
    split = {cache: kept for cache, kept in caches.items() if kept.windowed is not None}
    for cache, kept in split.items():
        symbol = _symbol(cache)
        format = kept.windowed
        assert format is not None
        if symbol not in sizes:
            first[symbol] = format
            sizes[symbol] = {
                name: (rows, new_size(mode, f"{name}_of_{cache.name}", _hint(format, rows)))
                for name, rows in format.counts.items()
            }
        if _waiting(first[symbol]) != _waiting(format):
            raise UnsupportedError(
                f"{format.text} and {first[symbol].text} let other rows wait, in caches of as many",
                where=cache.name,
                expected="formats of one window and one group, or that store each row alone",
            )
    _free(draft, sizes)
    for node in draft.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if isinstance(value, Tensor) and node not in split:
            node.meta["val"] = _longer(value, sizes, mode)
    found: dict[str, dict[str, fx.Node]] = {cache.name: {} for cache in caches}
    for cache, kept in split.items():
        for name, value in _coded(kept, cache.meta["val"], sizes[_symbol(cache)], mode).items():
            made = add_input(draft, kept.input_of(cache.name, name), value)
            found[cache.name][name] = made
    return found


def _hint(format: Windowed, rows: int) -> int:
    """Return what a count is while shapes are computed: units enough for several segments."""
    return max(4 * format.unit // rows, HINT) if rows else 2


def _waiting(format: Windowed) -> tuple[object, ...]:
    return format.unit, format.waits, dict(format.counts)


def suppressed(mode: FakeTensorMode) -> AbstractContextManager[Any]:
    """Ask of sizes without leaving guards: what a program is to be run with is not known here."""
    environment = mode.shape_env
    return torch.no_grad() if environment is None else environment.suppress_guards()


def of_length(value: Tensor, rows: int, mode: FakeTensorMode) -> Tensor:
    """Return a recorded cache of which a free number of rows is taken to be so many.

    What is 1 of the example would be taken for 1 in any run.
    """
    size, environment = value.shape[ROWS], mode.shape_env
    if isinstance(size, int) or environment is None:
        return value
    taken: Any = environment.create_symintnode(size.node.expr, hint=rows)
    with mode:
        shape = (*value.shape[:ROWS], taken, *value.shape[ROWS + 1 :])
        return torch.empty(shape, dtype=value.dtype, device=value.device)


def _symbol(cache: fx.Node) -> sympy.Symbol:
    length = length_of(cache.meta["val"].shape[ROWS])
    if not isinstance(length, sympy.Symbol):
        raise UnsupportedError(
            f"the cache has {length} rows, and blocks of it are coded as it grows",
            where=cache.name,
            expected="a cache of free length",
        )
    return length


def _longer(value: Tensor, sizes: Mapping[sympy.Symbol, Sizes], mode: FakeTensorMode) -> Tensor:
    """Return a recorded input with the coded rows in its sizes as well."""
    shape = [_with_coded(size, sizes) for size in value.shape]
    if all(new is old for new, old in zip(shape, value.shape, strict=True)):
        return value
    with mode:
        return torch.empty(shape, dtype=value.dtype, device=value.device)


def _with_coded(
    size: int | torch.SymInt, sizes: Mapping[sympy.Symbol, Sizes]
) -> int | torch.SymInt:
    """Return a size that is linear in those of caches with each of them longer."""
    length = length_of(size)
    for symbol, counts in sizes.items():
        if not isinstance(length, int) and symbol in length.free_symbols:
            each = sympy.diff(length, symbol)
            if not each.is_Integer:
                raise UnsupportedError(f"a size is {length}, of a cache of {symbol} rows")
            for rows, count in counts.values():
                size = size + int(each) * rows * count if rows else size
    return size


def _coded(kept: Kept, rows: Tensor, sizes: Sizes, mode: FakeTensorMode) -> dict[str, Tensor]:
    """Return coded tensors of a cache, as recorded values.

    Those whose length is a count itself come first: ``torch.export`` learns a size from the first
    input that has it, and cannot solve ``32 n = 0`` of one that it knows to be positive.
    """
    assert kept.windowed is not None
    form = kept.form(int(rows.shape[1]), int(rows.shape[3]), rows.dtype)
    found = {}
    lengths = kept.windowed.lengths(kept.side)
    for name, of in sorted(lengths.items(), key=lambda item: sum(item[1].values())):
        value = form[name]
        length = sum(times * sizes[count][1] for count, times in of.items())
        with mode:
            shape = (rows.shape[0], value.shape[1], length, *value.shape[3:])
            found[name] = torch.empty(shape, dtype=value.dtype, device=rows.device)
    return found


def _free(draft: ExportedProgram, sizes: Mapping[sympy.Symbol, Sizes]) -> None:
    """State the range of each window's size, which may be none, and of what is coded."""
    ranges = dict(draft.range_constraints)
    for symbol, counts in sizes.items():
        most = ranges[symbol].upper if symbol in ranges else int_oo
        ranges[symbol] = ValueRanges(0, most)
        for rows, count in counts.values():
            known = rows and most.is_Integer
            ranges[length_of(count)] = ValueRanges(0, most // rows if known else int_oo)
    draft._range_constraints = ranges
