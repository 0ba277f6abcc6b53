"""Layers and stacks: attention blocks along one residual stream, in order.

A layer is a skip connection around attention: it *enters* at the skip value.  Layers whose streams
carry the same token axis, each reached from the one before, form a stack: a vision tower, a
decoder.  No module name is read: the structure is in the additions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from tokopt.ir.attention import Attention
from tokopt.ir.axis import Axis, locate
from tokopt.ir.dependence import Dependence
from tokopt.ir.dims import Dims
from tokopt.ir.lengths import is_one
from tokopt.ir.row_spaces import RowSpaces


@dataclass(frozen=True)
class Layer:
    """One attention block: where it enters and leaves the stream, its attentions.

    ``windowed``: no row reads all rows; it attends inside windows, each an attention of its own or
    all in one, or reads rows that were pooled.
    """

    depth: int
    entry: fx.Node
    join: fx.Node
    attention: tuple[Attention, ...]
    windowed: bool


@dataclass(frozen=True)
class Stack:
    """Layers along one stream.  ``dim`` of the stream values carries ``stream`` (all its rows).

    ``cross``: the layers read the stream from another one, by cross-attention, and do not add to
    it; their entries are the aliases that ``ir/cross.py`` made.
    """

    layers: tuple[Layer, ...]
    dim: int
    stream: Axis
    end: fx.Node
    cross: bool = False


@dataclass(frozen=True)
class Block:
    """The skip connection around an attention: ``join = entry + f(entry)``."""

    entry: fx.Node
    join: fx.Node


Joins = list[tuple[fx.Node, fx.Node, fx.Node]]


def enclosing(query: fx.Node, out: fx.Node, joins: Joins, dependence: Dependence) -> Block | None:
    """Return the first skip connection around the way from ``query`` to ``out``, in graph order."""
    for join, skip, branch in joins:
        if (
            dependence.reaches(out, branch)
            and dependence.reaches(skip, query)
            and not dependence.reaches(out, skip)
        ):
            return Block(skip, join)
    return None


def find_stacks(attentions: list[Attention], dims: Dims, dependence: Dependence) -> list[Stack]:
    """Group attentions into layers by the skip connection around them, and layers into stacks."""
    joins = [(j, s, b) for j, s, b in dependence.skip_connections() if j in dims.axes]
    blocks: dict[fx.Node, tuple[fx.Node, list[Attention]]] = {}
    for attention in attentions:
        block = enclosing(attention.query, attention.out, joins, dependence)
        if block is not None:
            blocks.setdefault(block.join, (block.entry, []))[1].append(attention)
    spaces = RowSpaces(dims)
    stacks: list[tuple[list[Layer], int, Axis]] = []
    for join, (entry, members) in sorted(blocks.items(), key=lambda b: dependence.order[b[0]]):
        dim = token_dim(entry, members[0], dims, spaces)
        if dim is None:
            continue
        stream = dims.axis(entry, dim)
        home = next(
            (s for s in stacks if s[2].root is stream and dependence.reaches(s[0][-1].join, entry)),
            None,
        )
        if home is None:
            home = ([], dim, stream)
            stacks.append(home)
        windowed = len(members) > 1 or _apart(members[0].keys, stream)
        home[0].append(Layer(len(home[0]), entry, join, tuple(members), windowed))
    return [
        Stack(
            tuple(_narrower(layers)),
            dim,
            stream,
            _end(layers[-1].join, stream, dim, joins, dims, dependence),
        )
        for layers, dim, stream in stacks
    ]


def _apart(keys: Axis, stream: Axis) -> bool:
    """Return whether keys are neither the rows of a stream's items (or some) nor more beside them.

    Several keys to each row of the stream are other rows: the layer pools its queries.  Several
    rows of the stream to each key are interleaved windows: items lie behind one another.
    """
    around, within = locate(keys, stream), locate(stream, keys)
    if around is not None and not around.whole:
        return any(kind == "*" for kind, _, _ in around.path)
    if within is None:
        return True
    behind = (
        child for kind, children, at in within.path if kind == "*" for child in children[at + 1 :]
    )
    return any(not is_one(child.root.length) for child in behind)


def _narrower(layers: list[Layer]) -> list[Layer]:
    """Return layers with those windowed that attend inside what others of the stack attend to.

    Where all attend to the same part of the stream, that part is an item of a batch.
    """
    keys = {layer.attention[0].keys.root for layer in layers}

    def inside(own: Axis) -> bool:
        return any(own is not other and locate(other, own) is not None for other in keys)

    return [
        replace(layer, windowed=layer.windowed or inside(layer.attention[0].keys.root))
        for layer in layers
    ]


def token_dim(entry: fx.Node, attention: Attention, dims: Dims, spaces: RowSpaces) -> int | None:
    """Return the dim of a stream value that carries an attention's key rows, whole or windowed."""
    axes = dims.axes.get(entry, [])
    for dim, axis in enumerate(axes):
        if not is_one(axis.length) and locate(axis, attention.keys) is not None:
            return dim
    return next((d for d, axis in enumerate(axes) if spaces.hold(axis, attention.keys)), None)


def _end(
    join: fx.Node,
    stream: Axis,
    dim: int,
    joins: list[tuple[fx.Node, fx.Node, fx.Node]],
    dims: Dims,
    dependence: Dependence,
) -> fx.Node:
    """Return the last value of the stream: follow skip connections on from the last layer."""
    end = join
    for later, skip, _ in joins:
        carried = len(dims.axes[later]) > dim and dims.axis(later, dim) is stream.root
        if carried and skip is not later and dependence.reaches(end, skip) and later is not end:
            end = later
    return end
