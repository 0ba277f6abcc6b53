"""Drop: take the holes that a shortened tower left out of the sequence it was merged into.

A tower stage keeps its contract with the merge by restoring the full length, dropped rows as
holes.  Which rows of the merged sequence are holes is run-time data: it is found by replaying the
tower's own row movements (views, permutations, the scatter) on flags, one per restored row.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from tokopt.ir.dialect import OPS
from tokopt.ir.dims import describe, operator_name
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Merge, TokenStack
from tokopt.ir.layout import layout_of, lead_axes
from tokopt.passes.cut import Cut
from tokopt.passes.flags import passed_flags
from tokopt.passes.scoring import StackState
from tokopt.passes.workspace import Workspace, aten

MOVES = frozenset(
    f"aten::{name}"
    for name in (
        "view reshape _unsafe_view flatten unflatten squeeze unsqueeze permute transpose t expand "
        "clone contiguous slice select split split_with_sizes unbind index index_select roll flip "
        "repeat cat stack alias _reshape_alias chunk movedim gather masked_scatter index_put"
    ).split()
)
"""Operators that move rows without changing them: replayed as they are."""

SAME_SHAPE = frozenset(
    f"aten::{name}"
    for name in "to _to_copy gelu silu relu mul add div layer_norm rms_norm dropout "
    "sub tanh sigmoid".split()
)


def visual_mask(work: Workspace, stack: TokenStack, merge: Merge) -> fx.Node:
    """Insert the mask of visual rows as bool ``[B, N]``, with the last row protected."""
    axes = work.axes[merge.node]
    lead = lead_axes(axes, stack.stack.dim, stack.stack.stream.root)
    mask = merge.mask
    layout = layout_of(merge.node, work.facts.dims, lead, stack.stack.dim, len(axes) - 1)
    shape = [work.size(merge.node, d) for d in range(len(axes) - 1)]

    def visual(given: Tensor, *sizes: int) -> Tensor:
        given = given.expand([*sizes, given.shape[-1]])
        shown = layout.apply(given.narrow(-1, 0, 1)).squeeze(1).squeeze(-1)
        rows = torch.arange(shown.shape[1], device=shown.device)
        return shown & (rows < shown.shape[1] - 1)

    return work.splice(visual, [mask, *shape])


def drop_holes(
    work: Workspace,
    stack: TokenStack,
    state: StackState,
    merge: Merge,
    kept: int,
) -> Cut:
    """Return the cut of the merged sequence to rows that are no holes (``kept`` are visual)."""
    lead = lead_axes(work.axes[merge.node], stack.stack.dim, stack.stack.stream.root)
    with work.after(merge.node):
        flags = _Replay(work).flags(merge.node)
        layout = layout_of(
            merge.node, work.facts.dims, lead, stack.stack.dim, len(work.axes[merge.node]) - 1
        )
        total = work.plus(work.minus(state.rows, state.visual), kept)

        def survivors(given: Tensor, visual: Tensor, count: int) -> Tensor:
            alive = layout.apply(given.narrow(-1, 0, 1)).squeeze(1).squeeze(-1) > 0.5
            holes = visual & ~alive
            zeros = torch.zeros(holes.shape, device=holes.device)
            return OPS["select"].overload(zeros, holes, count)

        stream = work.splice(survivors, [flags, state.mask, total])
        index = stream if lead else work.call(aten.squeeze.dim, stream, 0)
        state.mask = work.call(aten.gather.default, state.mask, 1, stream)
    cut = Cut(work, merge.node, stack.stack.stream.root, lead, index, total, state.rows)
    state.rows, state.visual, state.origin = total, kept, stream
    return cut


class _Replay:
    """Flags of the rows of values between the restores and the merge: 1 alive, 0 a hole."""

    def __init__(self, work: Workspace) -> None:
        self.work = work
        self.known: dict[fx.Node, fx.Node | None] = {}

    def flags(self, node: fx.Node) -> fx.Node:
        """Insert and return a value's flags, in the value's own shape."""
        found = self._flags(node)
        if found is None:
            raise UnsupportedError(
                "no restored rows reach the merge", where=describe(node), hint="report this graph"
            )
        return found

    def _flags(self, node: fx.Node) -> fx.Node | None:
        if node not in self.known:
            self.known[node] = self._compute(node)
        return self.known[node]

    def _compute(self, node: fx.Node) -> fx.Node | None:
        work = self.work
        if node.op != "call_function" or not isinstance(
            node.meta.get("val"), (torch.Tensor, list, tuple)
        ):
            return None
        if node.target is OPS["restore"].overload:
            inner = node.all_input_nodes[0]
            ones = self._flags(inner) or work.call(aten.ones_like.default, inner)
            return work.call(node.target, ones, *node.args[1:])
        given = {a: self._flags(a) for a in node.all_input_nodes}
        if all(flag is None for flag in given.values()):
            return None
        name = operator_name(node)
        if name in MOVES or name == "getitem":
            return self._moved(node, given)
        if name in SAME_SHAPE or name == "aten::linear":
            (flag,) = [f for f in given.values() if f is not None][:1]
            first = work.call(aten.slice.Tensor, flag, -1, 0, 1)
            shape = [work.size(node, d) for d in range(len(node.meta["val"].shape))]
            return work.call(aten.expand.default, first, shape)
        if node in work.facts.dims.uses and not work.facts.dims.uses[node].moves:
            operand = next(a for a, flag in given.items() if flag is not None)
            return passed_flags(work, node, operand, given[operand])
        raise UnsupportedError(
            f"rows with holes pass through {name} on their way to the merge",
            where=describe(node),
            hint="place the stage at decoder:0 instead",
        )

    def _moved(self, node: fx.Node, given: dict[fx.Node, fx.Node | None]) -> fx.Node:
        """Replay a row movement: data operands become flags, index operands stay."""

        def swap(operand: fx.Node) -> fx.Node:
            flag = given.get(operand)
            if flag is not None:
                return flag
            value = operand.meta.get("val")
            is_data = isinstance(value, torch.Tensor) and value.is_floating_point()
            return self.work.call(aten.ones_like.default, operand) if is_data else operand

        args = fx.node.map_arg(node.args, swap)
        kwargs = fx.node.map_arg(node.kwargs, swap)
        return self.work.call(node.target, *args, **kwargs)
