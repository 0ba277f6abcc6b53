"""Cross-attention: layers of one stream that read the rows of another.

A layer's attention is a *reading* where its keys do not come from the layer's own skip connection.
All readings of one value (an encoder's output, read by every decoder layer) are threaded: reading
*j* gets its own alias of the value, made from the alias of reading *j - 1*.  Cutting alias *j*
then shortens what readings *j*, *j + 1*, … see and no other, like a cut between two layers of a
residual stream: one rewriter, one oracle for both.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import fx

from tokopt.ir.attention import FUSED, PRODUCTS, SOFTMAX, Attention, find_attention, upstream
from tokopt.ir.axis import Axis, locate
from tokopt.ir.dead import remove_dead
from tokopt.ir.dependence import Dependence
from tokopt.ir.dims import Dims, infer_dims, operator_name
from tokopt.ir.layers import Block, Layer, Stack, enclosing, token_dim
from tokopt.ir.lengths import is_one
from tokopt.ir.movement import MOVES
from tokopt.ir.one_dim import in_one_dim
from tokopt.ir.row_spaces import RowSpaces

ALIAS = torch.ops.aten.alias.default


@dataclass(frozen=True)
class Reading:
    """One cross-attention: the block of the reading stream it is in, and the value it reads."""

    block: Block
    attention: Attention
    source: fx.Node


def find_readings(attentions: list[Attention], dims: Dims, dependence: Dependence) -> list[Reading]:
    """Return every cross-attention of a graph, in graph order.

    Layers of one stream that read the same rows have one source, whatever each does to it first
    (a norm of its own, say); in a threaded graph it is the reading's own alias.
    """
    crossing = _crossing(attentions, dependence)
    together: dict[tuple[Axis, Axis], list[Attention]] = {}
    for attention, _ in crossing:
        streams = (attention.keys.root, attention.queries.root)
        together.setdefault(streams, []).append(attention)
    found = []
    for attention, block in crossing:
        group = together[attention.keys.root, attention.queries.root]
        source = (
            _source([attention], dims, dependence, threaded=True)
            or _source(group, dims, dependence)
            or _source([attention], dims, dependence)
        )
        if source is not None:
            found.append(Reading(block, attention, source))
    return found


def _source(
    attentions: list[Attention], dims: Dims, dependence: Dependence, *, threaded: bool = False
) -> fx.Node | None:
    """Return the last value that all keys and values are made of, and that has their rows."""
    keys = attentions[0].keys
    operands = [operand for a in attentions for operand in (a.key, a.value)]
    for node in dependence.common_ancestors(*operands):
        axes = dims.axes.get(node, [])
        if node in dims.learned or (threaded and node.target is not ALIAS):
            continue
        if any(locate(axis, keys) is not None for axis in axes):
            return node if threaded else _unstacked(node, attentions[0], dims)
    return None


def _unstacked(node: fx.Node, attention: Attention, dims: Dims) -> fx.Node:
    """Return the value that a source was moved from, where keys and values lie behind one another.

    That is, where a dim counts neither rows, items nor (the last) features.
    """

    def is_stacked(value: fx.Node) -> bool:
        others = [a for a in dims.axes[value][:-1] if locate(a, attention.keys) is None]
        given = dims.axes[attention.key]
        return any(
            not is_one(a.length) and all(locate(own, a) is None for own in given) for a in others
        )

    before = node
    while is_stacked(before):
        operands = [operand for operand in before.all_input_nodes if operand in dims.axes]
        if operator_name(before) not in MOVES or len(operands) != 1:
            return node
        (before,) = operands
    return before


def _crossing(attentions: list[Attention], dependence: Dependence) -> list[tuple[Attention, Block]]:
    """Return the attentions whose keys do not come from their own skip connection."""
    joins = list(dependence.skip_connections())
    around = [(a, enclosing(a.query, a.out, joins, dependence)) for a in attentions]
    return [(a, b) for a, b in around if b is not None and not dependence.reaches(b.entry, a.key)]


def cross_stacks(readings: list[Reading], dims: Dims) -> list[Stack]:
    """Return the stacks of readings of one value each, as ``thread`` has chained them."""
    chains: list[list[Reading]] = []
    for reading in readings:
        operand = reading.source.args[0] if reading.source.target is ALIAS else None
        home = next((chain for chain in chains if chain[-1].source is operand), None)
        if home is None:
            chains.append(home := [])
        home.append(reading)
    if not chains:
        return []
    found: list[Stack] = []
    spaces = RowSpaces(dims)
    for chain in chains:
        layers = tuple(
            Layer(depth, reading.source, reading.block.join, (reading.attention,), False)
            for depth, reading in enumerate(chain)
        )
        dim = token_dim(layers[0].entry, layers[0].attention[0], dims, spaces)
        if dim is not None:
            stream = dims.axis(layers[0].entry, dim)
            found.append(Stack(layers, dim, stream, layers[-1].entry, cross=True))
    return found


def thread(exported: torch.export.ExportedProgram) -> bool:
    """Thread the readings of a graph, in place; return whether there are any."""
    graph = exported.graph
    dependence = Dependence(graph)
    if not _may_read(graph, dependence):
        return False
    dims = infer_dims(exported)
    attentions = find_attention(graph, dims)
    across = [attention for attention, _ in _crossing(attentions, dependence)]
    if in_one_dim(graph, across, dims, dependence):
        remove_dead(graph)
        dims, dependence = infer_dims(exported), Dependence(graph)
        attentions = find_attention(graph, dims)
    groups: dict[fx.Node, list[Reading]] = {}
    for reading in find_readings(attentions, dims, dependence):
        groups.setdefault(reading.source, []).append(reading)
    for source, readings in groups.items():
        _thread(graph, source, readings, dependence)
    return bool(groups)


def _thread(
    graph: fx.Graph, source: fx.Node, readings: list[Reading], dependence: Dependence
) -> None:
    """Insert the chain of aliases behind a source and move each user to its reading's alias."""
    users = {user: _first_reader(user, readings, dependence) for user in source.users}
    last, behind = source, source
    for index, reading in enumerate(readings):
        with graph.inserting_after(behind):
            alias = graph.call_function(ALIAS, (last,))
        alias.meta = copy.copy(source.meta)
        for user, reader in users.items():
            if reader == index:
                user.replace_input_with(source, alias)
        _sink_users(graph, alias)
        last, behind = alias, reading.block.join


def _sink_users(graph: fx.Graph, node: fx.Node) -> None:
    """Move what depends on a node, and stands before it, behind it.

    An alias stands behind the reading before its own: a score read from that one can decide what
    the next one sees, even where keys and values of all layers were computed in advance.
    """
    moved, place = {node}, node
    for other in list(graph.nodes):
        if other is node:
            return
        if any(operand in moved for operand in other.all_input_nodes):
            place.append(other)
            moved.add(other)
            place = other


def _first_reader(user: fx.Node, readings: list[Reading], dependence: Dependence) -> int | None:
    """Return the first reading whose keys or values a user of the source is on the way to."""
    for index, reading in enumerate(readings):
        operands = (reading.attention.key, reading.attention.value)
        if any(dependence.reaches(user, operand) for operand in operands):
            return index
    return None


def _may_read(graph: fx.Graph, dependence: Dependence) -> bool:
    """Return whether a graph might have a reading; cheap, so that others pay no analysis."""
    joins = list(dependence.skip_connections())
    for node in graph.nodes:
        if node.op != "call_function" or operator_name(node) not in {FUSED, *SOFTMAX}:
            continue
        around = enclosing(node, node, joins, dependence)
        if around is None:
            continue
        if operator_name(node) == FUSED:
            operands = list(node.all_input_nodes[:2])
        else:
            scores = next((p for p in upstream(node) if operator_name(p) in PRODUCTS), None)
            operands = [] if scores is None else scores.all_input_nodes
        if any(not dependence.reaches(around.entry, operand) for operand in operands):
            return True
    return False
