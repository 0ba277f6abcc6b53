"""Merge: where visual rows enter a sequence of text.

Three forms are known.  A *scatter* writes rows to run-time positions (``masked_scatter``, or
``index_put`` by a mask or by indices): text and image may stand anywhere.  A *concatenation* puts
them at fixed places: the visual rows are a part of the axis.  The normal form brings other ways to
write rows into these; what then still mixes the two leaves open how many rows are visual.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from tokopt.ir.axis import Axis, locate
from tokopt.ir.dependence import Dependence
from tokopt.ir.dims import Dims, arguments_of, operator_name
from tokopt.ir.given import Given, is_float
from tokopt.ir.layers import Stack
from tokopt.ir.lengths import Length, product, quotient
from tokopt.ir.region import MERGES

MIXES = MERGES | {
    f"aten::{name}" for name in ("cat", "where", "scatter", "index_copy", "slice_scatter")
}
"""Operators that can put image rows among text rows."""


@dataclass(frozen=True)
class Merge:
    """A scatter: ``node`` writes ``source`` where ``mask`` is true, ``count`` rows per batch item.

    Where positions are given by numbers, ``indices`` are those along the leading dims, one tensor
    each, and ``mask`` is the first of them.
    """

    node: fx.Node
    mask: fx.Node
    source: fx.Node
    count: Length
    indices: tuple[fx.Node, ...] = ()


def find_scatter(stack: Stack, dims: Dims, dependence: Dependence, given: Given) -> Merge | None:
    """Return the scatter that writes image rows into a stack's sequence, if there is one."""
    for node in _mixes(stack, dims, dependence, given):
        parts = _scattered(node)
        if parts is None:
            continue
        (mask, *more), source = parts
        by_mask = mask.meta["val"].dtype == torch.bool
        if by_mask and more:
            continue
        width = dims.axes[node][-1].length  # the source may come flattened to elements
        rows = quotient(product([a.length for a in dims.axes[source]]), width)
        lead = product([a.length for a in dims.axes[node][:-1] if not locate(a, stack.stream)])
        count = None if rows is None else quotient(rows, lead)
        if source in given.seen and count is not None:
            return Merge(node, mask, source, count, () if by_mask else (mask, *more))
    return None


def find_part(
    stack: Stack, whole: Axis, dims: Dims, dependence: Dependence, given: Given
) -> Axis | None:
    """Return the visual part of a sequence that a concatenation makes, if it has just one.

    ``whole`` is the axis of one item's sequence.
    """
    for node in _before(stack, dependence):
        if operator_name(node) != "aten::cat":
            continue
        for dim, axis in enumerate(dims.axes.get(node, [])):
            if axis.root is not whole.root:
                continue
            operands = arguments_of(node)["tensors"]
            visual = [o for o in operands if o in given.seen]
            words = [o for o in operands if o in given.words and o not in given.seen]
            if len(visual) == 1 and words:
                body = [leaf for leaf in dims.axis(visual[0], dim).leaves() if not leaf.learned]
                return body[0] if len(body) == 1 else dims.axis(visual[0], dim)
    return None


def mixes_text(stack: Stack, dims: Dims, dependence: Dependence, given: Given) -> bool:
    """Return whether text and image rows are mixed in a stack's sequence, in whatever way."""
    return bool(_mixes(stack, dims, dependence, given))


def _mixes(stack: Stack, dims: Dims, dependence: Dependence, given: Given) -> list[fx.Node]:
    """Return the calls that put values of image and of text together in a stack's sequence."""
    found = []
    for node in _before(stack, dependence):
        if operator_name(node) not in MIXES or not _carries(node, stack, dims):
            continue
        operands = [o for o in node.all_input_nodes if is_float(o)]
        words = [o for o in operands if o in given.words and o not in given.seen]
        if words and any(o in given.seen for o in operands):
            found.append(node)
    return found


def _before(stack: Stack, dependence: Dependence) -> list[fx.Node]:
    entry = stack.layers[0].entry
    return [node for node in dependence.order if dependence.reaches(node, entry)]


def _carries(node: fx.Node, stack: Stack, dims: Dims) -> bool:
    return any(locate(axis, stack.stream) is not None for axis in dims.axes.get(node, []))


def _scattered(node: fx.Node) -> tuple[tuple[fx.Node, ...], fx.Node] | None:
    """Return the mask (or indices) and the written rows of a scatter."""
    given = arguments_of(node)
    if operator_name(node) == "aten::masked_scatter":
        return (given["mask"],), given["source"]
    if operator_name(node) == "aten::index_put" and not given.get("accumulate"):
        indices = tuple(given["indices"])
        if all(isinstance(index, fx.Node) for index in indices):
            return indices, given["values"]
    return None
