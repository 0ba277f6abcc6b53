"""Block tap: what the sub-blocks of a layer read and what they add to the stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, fx

from tokopt.ir.blocks import SubBlock, find_blocks
from tokopt.ir.dims import describe
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.plan import Plan
from tokopt.passes.methods.fold import rows_at
from tokopt.passes.methods.method import Method
from tokopt.passes.operands import Given, Operands
from tokopt.passes.stream_view import StreamView

Blocks = tuple[tuple[SubBlock, ...], ...]
"""The sub-blocks of each layer of a stack."""


def blocks_of_plan(facts: Facts, plan: Plan, methods: Callable[[str], Method]) -> dict[str, Blocks]:
    """Return the sub-blocks by site, for the stages whose method reads them.

    To be asked before anything is rewritten.  Raises ``UnsupportedError`` where a layer tells none.
    """
    return {
        stage.site: stack_blocks(facts, facts.find_site(stage.site)[0], stage.method)
        for stage in plan.stages
        if "blocks" in methods(stage.method).needs
    }


def stack_blocks(
    facts: Facts, stack: TokenStack, method: str, hint: str = "pdrop reads attention alone"
) -> Blocks:
    """Return the sub-blocks of a stack's layers, or refuse where some layer tells none."""
    found = find_blocks(stack.stack, facts.dims, facts.dependence)
    bare = next((at for at, blocks in enumerate(found) if not blocks), None)
    if bare is not None:
        raise UnsupportedError(
            f"{method} reads what the blocks of each layer add to the stream, and layer {bare} of "
            f"{stack.role} does not tell",
            expected="a chain of skip connections, each around products with learned weights",
            hint=hint,
        )
    return found


def read_blocks(
    operands: Operands, blocks: Sequence[SubBlock], left: fx.Node | None, view: StreamView
) -> Callable[[Given], tuple[tuple[Tensor, Tensor], ...]]:
    """Return how to see the inputs and outputs of a layer's blocks, ``[B, N, C]`` each.

    ``left``: the rows of that layer that are still there, int64 ``[B, N]``; None: all.
    """
    if left is not None and view.rows is not None and blocks:
        raise UnsupportedError(
            "the blocks of a layer in front of another stage lie flat",
            where=describe(blocks[0].output),
        )
    values = [(operands.slot(block.input), operands.slot(block.output)) for block in blocks]
    rows = operands.maybe(left)

    def build(given: Given) -> tuple[tuple[Tensor, Tensor], ...]:
        index = rows(given)

        def seen(value: Tensor) -> Tensor:
            whole = view.see(value)
            return whole if index is None else rows_at(whole, index)

        return tuple((seen(before(given)), seen(after(given))) for before, after in values)

    return build
