"""Reused: the layers of a tower in which few rows are computed anew, as their graph has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from tokopt.ir.attention import Attention
from tokopt.ir.blocks import SubBlock
from tokopt.ir.dims import describe
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.plan import Attending, Plan
from tokopt.ir.region import crossing_rows
from tokopt.passes.block_tap import stack_blocks
from tokopt.passes.budget import row_count
from tokopt.passes.rewrites.registry import find_rewrite
from tokopt.passes.rewrites.reuse import EVERY, SHARE, Reuse, rows_anew

AGE = "reuse_age"
"""The input that counts the calls since the last reference; at 0 the next call is one."""


@dataclass(frozen=True)
class ReusedLayer:
    """One layer.  ``blocks``: the attention's first; ``short``: of each the calls on few rows.

    Keys are computed of all rows, and so is what values and queries have in common with them.
    """

    depth: int
    attention: Attention
    blocks: tuple[SubBlock, ...]
    short: tuple[tuple[fx.Node, ...], ...]

    def state(self, name: str) -> str:
        """Return the name of the input that holds a state of the layer."""
        return f"reuse_{self.depth}_{name}"

    @property
    def added(self) -> list[str]:
        """The states that hold what each block added."""
        return [self.state(f"added_{number}") for number in range(len(self.blocks))]


@dataclass(frozen=True)
class Reused:
    """A plan's entry in one graph: ``keep`` of the tower's tokens are computed anew."""

    rewrite: Reuse
    stack: TokenStack
    layers: tuple[ReusedLayer, ...]
    options: Mapping[str, int | float | str]

    @property
    def keep(self) -> int:
        """How many tokens are computed anew, learned rows not counted."""
        return rows_anew(float(self.options[SHARE]), row_count(self.stack))

    @property
    def every(self) -> int:
        """Every so many calls, one is a reference."""
        return int(self.options[EVERY])


def reuses(plan: Plan) -> list[Attending]:
    """Return the entries of a plan under which rows are reused."""
    return [e for e in plan.attention if isinstance(find_rewrite(e.method), Reuse)]


def reused_of(facts: Facts, plan: Plan) -> Reused | None:
    """Return the entry of a plan that reuses rows, if it has one.

    Raises ``InputError`` and ``UnsupportedError`` for what cannot be.
    """
    found = reuses(plan)
    if not found:
        return None
    entry, rewrite = found[0], find_rewrite(found[0].method)
    assert isinstance(rewrite, Reuse)
    if len(found) > 1:
        raise InputError(f"{rewrite.name} is asked for twice", expected="one entry: one tower")
    options = rewrite.settings(entry.options)
    stack, site = facts.find_site(entry.site)
    if stack.role.rstrip("0123456789") not in rewrite.roles:
        raise UnsupportedError(
            f"{rewrite.name} cannot reuse rows of {stack.role}",
            expected="a site of a tower, vision:0",
        )
    for stage in plan.stages:
        if facts.find_site(stage.site)[0] is stack:
            raise UnsupportedError(
                f"{rewrite.name} keeps every row of {stack.role}, and {stage.method} at "
                f"{stage.site} drops some",
                expected="stages in the decoder alone",
                hint="--method stc, divprune or another that is placed there",
            )
    blocks = stack_blocks(facts, stack, rewrite.name, hint="")
    depths = range(site.depth, len(stack.stack.layers))
    layers = tuple(_layer(facts, stack, rewrite.name, depth, blocks[depth]) for depth in depths)
    if not layers:
        raise UnsupportedError(f"no layer lies behind {site.name}", expected="vision:0")
    return Reused(rewrite, stack, layers, options)


def _layer(
    facts: Facts, stack: TokenStack, name: str, depth: int, blocks: Sequence[SubBlock]
) -> ReusedLayer:
    layer = stack.stack.layers[depth]
    attention = layer.attention[0]
    if layer.windowed or not attention.fused or attention.causal:
        how = 'by products written out: export with attn_implementation="sdpa"'
        how = "in windows" if layer.windowed else how
        raise UnsupportedError(
            f"{name} has few rows attend to all, and layer {depth} of {stack.role} attends "
            + ("to earlier rows alone" if attention.causal else how),
            where=describe(attention.node),
            expected="one scaled_dot_product_attention over all rows",
        )
    reaches, node = facts.dependence.reaches, attention.node
    inner = [_between(facts, block) for block in blocks]
    if node not in inner[0]:
        raise UnsupportedError(
            f"the first block of layer {depth} of {stack.role} is not its attention",
            where=describe(node),
        )
    keys = {n for n in inner[0] if reaches(n, attention.key)}
    for one in inner[0]:  # pieces of what is computed of all rows are taken of all rows
        if reaches(one, node) and isinstance(one.args[0] if one.args else None, fx.Node):
            parent = one.all_input_nodes[0]
            if parent in keys and isinstance(parent.meta["val"], (list, tuple)):
                keys.add(one)
    short = [[n for n in inner[0] if n not in keys], *inner[1:]]
    for nodes, block in zip(short, blocks, strict=True):
        _check(facts, stack, name, nodes, node, block)
    return ReusedLayer(depth, attention, tuple(blocks), tuple(map(tuple, short)))


def _between(facts: Facts, block: SubBlock) -> list[fx.Node]:
    """Return what is computed of a block's input on the way to its output."""
    reaches = facts.dependence.reaches
    return [
        node
        for node in facts.exported.graph.nodes
        if node is not block.input and reaches(block.input, node) and reaches(node, block.output)
    ]


def _check(
    facts: Facts,
    stack: TokenStack,
    name: str,
    nodes: Sequence[fx.Node],
    attention: fx.Node,
    block: SubBlock,
) -> None:
    inside = set(nodes)
    leaking = (n for n in nodes if n is not block.output and not inside >= set(n.users))
    read = next(leaking, None)
    met = crossing_rows([n for n in nodes if n is not attention], facts.dims, stack.tokens)
    wrong = met if read is None else read
    if wrong is not None:
        why = "takes rows together" if read is None else "is read elsewhere"
        raise UnsupportedError(
            f"{name} computes few rows of a block anew, and a value in it {why}",
            where=describe(wrong),
            expected="blocks that treat rows one by one, attention apart",
        )
