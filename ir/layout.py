"""Layout: how an attention operand is laid out, and how to see it as ``[B, H, N, d]``.

Graphs fold batch and heads in many ways (``[B, H, N, d]``, ``[B*H, N, d]``, ``[H, N, d]``, keys
transposed).  The axes say which factor is which, so every tap has one form.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from tokopt.ir.axis import Axis, locate
from tokopt.ir.dims import Dims
from tokopt.ir.lengths import Length, is_one


@dataclass(frozen=True)
class Layout:
    """Recipe from a tensor to ``[B, H, N, d]``: unfold dims to ``sizes``, permute, flatten groups.

    ``sizes`` may hold one -1 (a symbolic size); ``batch``/``heads`` are dims of the unfolded
    tensor, ``rows`` and ``features`` its token and feature dims.
    """

    sizes: tuple[int, ...] | None
    batch: tuple[int, ...]
    heads: tuple[int, ...]
    rows: int
    features: int

    def apply(self, tensor: Tensor) -> Tensor:
        """Return the tensor as ``[B, H, N, d]``."""
        if self.sizes is not None:
            tensor = tensor.reshape(_filled(tensor, self.sizes))
        order = (*self.batch, *self.heads, self.rows, self.features)
        if order != tuple(range(len(order))):
            tensor = tensor.permute(order)
        b, h = len(self.batch), len(self.heads)
        if h != 1:
            tensor = tensor.flatten(b, b + h - 1) if h else tensor.unsqueeze(b)
        if b != 1:
            tensor = tensor.flatten(0, b - 1) if b else tensor.unsqueeze(0)
        return tensor

    def put(self, values: Tensor, like: Tensor) -> Tensor:
        """Return ``values`` ``[B, H or 1, R, C]`` laid out as ``like`` is: the way back.

        The rows and features of ``like`` are its last dims; R and C may be other counts.
        Heads that are one there stay one where they have dims of their own.
        """
        shape = list(like.shape)
        if self.sizes is not None:
            shape = list(like.reshape(_filled(like, self.sizes)).shape)
        heads = [shape[dim] for dim in self.heads]
        if values.shape[1] == 1:
            shared = [1] * len(heads)
            values = values.reshape([shape[d] for d in self.batch] + shared + [*values.shape[2:]])
            if self.sizes is not None:  # a dim may hold batch and heads: it needs all of them
                rest = [-1, -1]
                values = values.expand([-1] * len(self.batch) + heads + rest)
        else:
            values = values.reshape([shape[d] for d in self.batch] + heads + [*values.shape[2:]])
        order = (*self.batch, *self.heads, self.rows, self.features)
        values = values.permute([order.index(dim) for dim in range(len(order))])
        if self.sizes is None:
            return values
        laid = list(like.shape)
        laid[-2:] = values.shape[-2:]
        return values.reshape(laid)


def _filled(tensor: Tensor, sizes: tuple[int, ...]) -> list[int]:
    """Return sizes with every 0 (kept as it is) read off the tensor in order."""
    dims = iter(tensor.shape)
    result: list[int] = []
    for size in sizes:
        if size == KEEP:
            result.append(next(dims))
        elif size == SPLIT:
            next(dims)
        else:
            result.append(size)
    return result


KEEP, SPLIT = -2, -3
"""Markers in ``Layout.sizes``: keep the next dim; drop the next dim, its factors follow."""


def layout_of(
    node: fx.Node, dims: Dims, lead: tuple[Axis, ...], rows: int, features: int
) -> Layout:
    """Return the layout of an attention operand.

    ``lead`` are the batch axes of the stream; ``rows``/``features`` the dims of the value that
    count tokens and features; every other factor is a head.
    """
    axes = dims.axes[node]
    rank = len(axes)
    rows, features = rows % rank, features % rank
    leads = [axis.root for axis in lead]
    sizes: list[int] = []
    batch: dict[int, int] = {}
    heads: list[int] = []
    new_rows = new_features = at = 0
    split = False
    for dim, axis in enumerate(axes):
        if dim in (rows, features):
            new_rows = at if dim == rows else new_rows
            new_features = at if dim == features else new_features
            sizes.append(KEEP)
            at += 1
            continue
        factors = unfolded(axis.root, leads)
        if len(factors) == 1:
            sizes.append(KEEP)
        else:
            split = True
            sizes += [SPLIT, *_sizes([f.length for f in factors])]
        for factor in factors:
            if factor in leads:
                batch[leads.index(factor)] = at
            else:
                heads.append(at)
            at += 1
    ordered = tuple(batch[i] for i in sorted(batch))
    return Layout(tuple(sizes) if split else None, ordered, tuple(heads), new_rows, new_features)


def lead_axes(axes: list[Axis], dim: int, tokens: Axis) -> tuple[Axis, ...]:
    """Return the batch axes of a stream value: what an index of its tokens runs with.

    ``axes`` are the value's, ``dim`` its token dim; the last other dim holds features.  Outer
    factors of a flattened ``[B*N, C]`` stream count too; dims of length 1 do not.
    """
    features = max(d for d in range(len(axes)) if d != dim) if len(axes) > 1 else -1
    lead: list[Axis] = []
    for d, axis in enumerate(axes):
        if d == dim:
            place = locate(axis, tokens)
            for kind, children, index in place.path if place is not None else ():
                if kind == "*":
                    lead += [c.root for c in children[:index] if not is_one(c.root.length)]
        elif d != features and not is_one(axis.root.length):
            lead.append(axis.root)
    return tuple(lead)


def unfolded(axis: Axis, wanted: list[Axis], tokens: Axis | None = None) -> list[Axis]:
    """Return the factors of a dim, unfolded only where one of the wanted axes is among them.

    Factors that make up ``tokens`` stay one.
    """
    axis = axis.root
    if axis in wanted or is_one(axis.length) or not axis.factors:
        return [axis]
    if all(locate(axis, want) is None for want in wanted):
        return [axis]
    place = None if tokens is None else locate(axis, tokens)
    kind, children, _ = place.path[0] if place is not None and place.path else ("+", (), 0)
    factors = children if kind == "*" else axis.factors
    return [g for f in factors for g in unfolded(f.root, wanted, tokens)]


def _sizes(lengths: list[Length]) -> list[int]:
    unknown = [not isinstance(length, int) for length in lengths]
    assert sum(unknown) <= 1, "a dim with two symbolic factors"
    return [length if isinstance(length, int) else -1 for length in lengths]
