"""Remembered: the inputs through which a stage gets what it kept in the call before."""

from __future__ import annotations

from torch import fx

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import TokenStack
from tokopt.ir.layout import lead_axes
from tokopt.ir.sites import Site
from tokopt.passes.methods.method import FEATURES, ITEMS, ROWS, Method
from tokopt.passes.stack_state import StackState
from tokopt.passes.workspace import Workspace


def memory_name(stage: int, name: str) -> str:
    """Return the name of the input that holds a state of the plan's stage number ``stage``."""
    return f"state_{stage}_{name}"


def memory_inputs(
    work: Workspace, stack: TokenStack, site: Site, method: Method, state: StackState, number: int
) -> dict[str, fx.Node]:
    """Add the inputs of a method's states and return them by the method's names.

    Raises ``UnsupportedError`` where the number of items is not constant.
    """
    if not method.state:
        return {}
    axes, shape = work.axes[site.value], site.value.meta["val"].shape
    features = max(d for d in range(len(axes)) if d != site.dim)
    lead = {axis.root for axis in lead_axes(axes, site.dim, site.tokens)}
    items = 1
    for axis, size in zip(axes, shape, strict=True):
        items = items * size if axis.root in lead else items
    if not isinstance(items, int):
        raise UnsupportedError(
            f"{method.name} remembers what it saw of each item, and their number is free",
            where=site.name,
            expected="a program exported for a constant batch",
        )
    sizes = {ITEMS: items, ROWS: stack.count, FEATURES: shape[features]}
    return {
        name: work.input(
            memory_name(number, name),
            tuple(int(sizes[size]) if isinstance(size, str) else size for size in sizes_of),
        )
        for name, sizes_of in method.state.items()
    }
