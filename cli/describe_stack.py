"""Describe one stack as plain data: its token axis, layers and sites."""

from __future__ import annotations

from typing import Any

from tokopt.cli.describe_call import describe_call, describe_length
from tokopt.ir.axis import locate
from tokopt.ir.dims import Dims
from tokopt.ir.facts import TokenStack
from tokopt.ir.holes import Barrier
from tokopt.ir.layers import Layer, Stack
from tokopt.ir.lengths import Length, product, quotient, total
from tokopt.ir.merge import Merge
from tokopt.ir.names import Names
from tokopt.ir.sites import Site


def describe_stack(stack: TokenStack, dims: Dims, names: Names, places: bool) -> dict[str, Any]:
    """Return a stack's rows, visual and protected tokens, relay, merge, layers and sites.

    ``relay`` counts rows of the stream, from the end where negative; ``keys`` of a layer is the
    longest window, ``group`` of a site the rows that leave together: ``whole`` factors of the grid,
    as ``grouped_by`` has it.
    """
    return {
        "role": stack.role,
        "rows": describe_length(stack.stack.stream.root.length, names),
        "visual": describe_length(stack.count, names),
        "protected": stack.protected,
        "relay": stack.relay,
        "merge": None if stack.merge is None else _merge(stack.merge, names, places),
        "layers": [_layer(layer, stack.stack, dims, names) for layer in stack.stack.layers],
        "sites": [_site(site, names, places) for site in stack.sites],
    }


def _merge(merge: Merge, names: Names, places: bool) -> dict[str, Any]:
    return {
        **describe_call(merge.node, names, places),
        "mask": names.node(merge.mask),
        "source": names.node(merge.source),
        "visual": describe_length(merge.count, names),
    }


def _layer(layer: Layer, stack: Stack, dims: Dims, names: Names) -> dict[str, Any]:
    first = layer.attention[0]
    keys = max((describe_length(a.keys.root.length, names) for a in layer.attention), key=_order)
    heads = _heads(layer, stack, dims)
    return {
        "depth": layer.depth,
        "enters": names.node(layer.entry),
        "attention": "fused" if all(a.fused for a in layer.attention) else "explicit",
        "heads": None if heads is None else describe_length(heads, names),
        "width": describe_length(dims.axes[first.query][-1].root.length, names),
        "windows": _windows(layer, stack),
        "keys": keys,
        "causal": first.causal,
        "masked": first.mask is not None,
    }


def _windows(layer: Layer, stack: Stack) -> int:
    """Return in how many windows a layer attends: 1 where every row reads every row."""
    keys = layer.attention[0].keys
    inside = layer.windowed or locate(stack.stream, keys) is not None
    count = quotient(stack.stream.root.length, keys.root.length) if inside else 1
    return max(len(layer.attention), count if isinstance(count, int) else 1)


def _heads(layer: Layer, stack: Stack, dims: Dims) -> Length | None:
    """Return query elements per row, batch item and width: heads, however they are folded."""
    entry = [axis.root.length for axis in dims.axes[layer.entry]]
    batch = product([n for dim, n in enumerate(entry) if dim not in (stack.dim, len(entry) - 1)])
    queries = [[axis.root.length for axis in dims.axes[a.query]] for a in layer.attention]
    elements = total([product(sizes) for sizes in queries])
    per_row = quotient(elements, product([batch, queries[0][-1]]))
    if per_row is None:
        return None
    rows = [stack.stream.root.length, total([a.queries.root.length for a in layer.attention])]
    return next((h for r in rows if (h := quotient(per_row, r)) is not None), None)


def _site(site: Site, names: Names, places: bool) -> dict[str, Any]:
    return {
        "name": site.name,
        "value": names.node(site.value),
        "legal": site.legal,
        "group": site.group,
        "whole": list(site.whole),
        "neighbours": not site.scattered,
        "barrier": _barrier(site.barrier, names, places),
        "grouped_by": _barrier(site.reason, names, places) if site.group > 1 else None,
    }


def _barrier(barrier: Barrier | None, names: Names, places: bool) -> dict[str, Any] | None:
    if barrier is None:
        return None
    reason = names.readable(barrier.reason)
    return {"reason": reason, **describe_call(barrier.node, names, places)}


def _order(length: int | str) -> tuple[int, int | str]:
    return (0, length) if isinstance(length, int) else (1, length)
