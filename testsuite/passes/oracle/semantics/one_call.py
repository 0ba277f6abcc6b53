"""Run one rule of the oracle on tensors with dropped rows, and the plain operator without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from tokopt.passes.oracle.dead import Marked, bury, dead_entries
from tokopt.passes.oracle.operation import operation_of
from tokopt.passes.oracle.semantics.table import find_rule

aten = torch.ops.aten


def apply_rule(
    target: Any,
    *args: Any,
    constants: Sequence[int] = (),
    rows: Sequence[int] = (),
    **kwargs: Any,
) -> Any:
    """Return what the oracle makes of one call.

    ``constants`` are the arguments that are weights, ``rows`` the output's dims that count rows.
    """
    graph = fx.Graph()
    made = [graph.placeholder(f"a{i}") if _is_value(a) else a for i, a in enumerate(args)]
    node = graph.call_function(target, tuple(made), kwargs)
    rule = find_rule(node)
    assert rule is not None, f"{target} has no rule"
    return rule(
        operation_of(
            node, args, kwargs, frozenset(made[i] for i in constants), lambda _, dim: dim in rows
        )
    )


def _is_value(value: Any) -> bool:
    return isinstance(value, (Tensor, Marked, list))


@dataclass(frozen=True)
class Case:
    """One call.  ``tokens[i]`` are the dims of argument i that count tokens; ``out`` the output's.

    ``shorter`` makes the arguments of the shortened call where deleting rows is not all there is to
    it (a literal length, an index), from the arguments and the rows that stay.
    """

    name: str
    target: Any
    args: Callable[[], tuple[Any, ...]]
    tokens: dict[int, tuple[int, ...]]
    out: tuple[int, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    constants: tuple[int, ...] = ()
    shorter: Callable[[list[Any], Tensor], list[Any]] | None = None

    def __str__(self) -> str:
        return self.name


def without_rows(value: Tensor, dims: Sequence[int], alive: Tensor) -> Tensor:
    """Delete the rows along each dim that are not in ``alive`` (bool over the rows)."""
    for dim in dims:
        value = value.index_select(dim, alive.nonzero().flatten())
    return value


def dead_over(value: Tensor, dims: Sequence[int], alive: Tensor) -> Tensor:
    """Return the mask of entries that lie in a deleted row along any of ``dims``."""
    mask = torch.zeros_like(value, dtype=torch.bool)
    for dim in dims:
        shape = [1] * value.ndim
        shape[dim] = len(alive)
        mask |= ~alive.view(shape)
    return mask


def check(case: Case, alive: Tensor) -> None:
    """Compare the rule at full length with the plain operator on tensors without the rows."""
    given = list(case.args())
    marked, short = list(given), list(given)
    for i, dims in case.tokens.items():
        one = isinstance(given[i], Tensor)
        values = [given[i]] if one else list(given[i])
        buried = [bury(v, dead_over(v, dims, alive)) for v in values]
        left = [without_rows(v, dims, alive) for v in values]
        marked[i], short[i] = (buried[0], left[0]) if one else (buried, left)
    if case.shorter is not None:
        short = case.shorter(short, alive)
    results = apply_rule(
        case.target, *marked, constants=case.constants, rows=case.out, **case.kwargs
    )
    wanted = case.target(*short, **case.kwargs)
    if isinstance(wanted, Tensor):
        results, wanted = (results,), (wanted,)
    for result, want in zip(results, wanted, strict=True):
        tensor = result if isinstance(result, Tensor) else result.tensor
        mask = dead_entries(result)
        mask = torch.zeros_like(tensor, dtype=torch.bool) if mask is None else mask
        assert torch.equal(mask, dead_over(tensor, case.out, alive)), f"marks of {case}"
        found = without_rows(tensor, case.out, alive)
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
