"""Drop: take the holes that a shortened tower left out of the sequence they arrive in.

A tower stage keeps its contract with the merge by restoring the full length, dropped rows as
holes.  Which rows of the merged sequence are holes is run-time data: it is found by replaying the
tower's own row movements (views, permutations, the scatter) on flags, one per restored row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from tokopt.ir.dialect import OPS
from tokopt.ir.dims import describe, operator_name
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import TokenStack
from tokopt.ir.layout import layout_of, lead_axes
from tokopt.ir.linked import linked_marks
from tokopt.ir.merge import Merge
from tokopt.ir.movement import ANY_LAYOUT, MOVES, PER_ROW
from tokopt.passes.cut import Cut
from tokopt.passes.stack_state import StackState
from tokopt.passes.workspace import Workspace, aten


def visual_mask(work: Workspace, stack: TokenStack, merge: Merge) -> fx.Node:
    """Insert the mask of visual rows as bool ``[B, N]``."""
    axes = work.axes[merge.node]
    lead = lead_axes(axes, stack.stack.dim, stack.stack.stream.root)
    layout = layout_of(merge.node, work.facts.dims, lead, stack.stack.dim, len(axes) - 1)
    shape = [work.size(merge.node, d) for d in range(len(axes) - 1)]
    leading = operator_name(merge.node) == "aten::index_put"  # what it addresses comes first

    def visual(*given: Any) -> Tensor:
        tensors, sizes = given[: len(given) - len(shape)], given[len(given) - len(shape) :]
        if merge.indices:
            nothing = torch.zeros(sizes, device=tensors[0].device)
            one = torch.ones((), device=tensors[0].device)
            written = nothing.index_put(tensors, one) > 0.5
        else:
            written = tensors[0]
        if leading:
            written = written.reshape([*written.shape, *[1] * (len(axes) - written.dim())])
        written = written.expand([*sizes, written.shape[-1]])
        return layout.apply(written.narrow(-1, 0, 1)).squeeze(1).squeeze(-1)

    return work.splice(visual, [*(merge.indices or (merge.mask,)), *shape])


def but_the_last(work: Workspace, mask: fx.Node) -> fx.Node:
    """Insert a mask of rows, bool ``[B, N]``, without the last: the next token comes from it."""

    def but_last(shown: Tensor) -> Tensor:
        rows = torch.arange(shown.shape[1], device=shown.device)
        return shown & (rows < shown.shape[1] - 1)

    return work.splice(but_last, [mask])


def drop_holes(
    work: Workspace,
    stack: TokenStack,
    state: StackState,
    boundary: fx.Node,
    kept: int,
) -> Cut:
    """Return the cut of a sequence to rows that are no holes (``kept`` are visual).

    ``boundary`` is the value in which rows with holes have arrived.
    """
    axes, dim, stream = work.axes[boundary], stack.stack.dim, stack.stack.stream.root
    if stack.merge is None and stack.protected:
        raise UnsupportedError(
            "rows with holes are read behind learned rows", where=describe(boundary)
        )
    lead = lead_axes(axes, dim, stream)
    with work.after(boundary):
        flags = _Replay(work).flags(boundary)
        layout = layout_of(boundary, work.facts.dims, lead, dim, len(axes) - 1)
        total = work.plus(work.minus(state.rows, state.visual), kept)

        def survivors(given: Tensor, count: int, visual: Tensor | None = None) -> Tensor:
            alive = layout.apply(given.narrow(-1, 0, 1)).squeeze(1).squeeze(-1) > 0.5
            holes = ~alive if visual is None else visual & ~alive
            zeros = torch.zeros(holes.shape, device=holes.device)
            return OPS["select"].overload(zeros, holes, count)

        operands: list[object] = [flags, total]
        index = work.splice(survivors, operands + ([] if state.mask is None else [state.mask]))
        if state.mask is not None:
            state.mask = work.call(aten.gather.default, state.mask, 1, index)
        state.origin = index
        index = index if lead else work.call(aten.squeeze.dim, index, 0)
    cut = Cut(work, boundary, stream, lead, index, total, state.rows)
    state.rows, state.visual = total, kept
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
        if node.target is OPS["gather"].overload:
            return None  # what a cut takes back is no hole
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
        if name in PER_ROW:
            (flag,) = [f for f in given.values() if f is not None][:1]
            first = work.call(aten.slice.Tensor, flag, -1, 0, 1)
            shape = [work.size(node, d) for d in range(len(node.meta["val"].shape))]
            return work.call(aten.expand.default, first, shape)
        if node in work.facts.dims.uses and not work.facts.dims.uses[node].moves:
            return self._linked(node, given)
        raise UnsupportedError(
            f"rows with holes pass through {name} on their way to the merge",
            where=describe(node),
            hint="place the stage at decoder:0 instead",
        )

    def _linked(self, node: fx.Node, given: dict[fx.Node, fx.Node | None]) -> fx.Node:
        """Pass the flags on along linked dims, whatever the call computes."""
        work = self.work
        operand, flag = next((a, f) for a, f in given.items() if f is not None)
        before, after = work.axes[operand], work.axes[node]
        sizes = [work.size(node, dim) for dim in range(len(after))]

        def passed(flags: Tensor, *shape: int) -> Tensor:
            return linked_marks(flags, before, after, shape)

        return work.splice(passed, [flag, *sizes])

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
        return self.work.call(ANY_LAYOUT.get(node.target, node.target), *args, **kwargs)
