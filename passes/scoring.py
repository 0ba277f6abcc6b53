"""Scoring: trace a method's own functions into the graph, on taps of the graph's values."""

from __future__ import annotations

from torch import Tensor, fx

from tokopt.passes.methods.method import Method
from tokopt.passes.reading import Reading
from tokopt.passes.workspace import Workspace


def score_rows(work: Workspace, reading: Reading, method: Method) -> fx.Node:
    """Insert a method's score of the rows at a site, fp32 ``[B, N]``."""

    def score(*tensors: Tensor) -> Tensor:
        taps, known = reading.build(tensors)
        scores = method.score(taps).float()
        return scores if known is None else scores.masked_fill(~known, float("-inf"))

    return work.splice(score, list(reading.operands))


def weigh_rows(work: Workspace, reading: Reading, method: Method, rows: fx.Node) -> fx.Node:
    """Insert how many original rows each row that stays stands for, fp32 ``[B, K]``.

    ``rows`` is int64 ``[B, K]``, the stream rows that stay.
    """

    def weighed(stay: Tensor, *tensors: Tensor) -> Tensor:
        taps, _ = reading.build(tensors)
        assert method.weigh is not None
        return method.weigh(taps, stay)

    return work.splice(weighed, [rows, *reading.operands])


def remember_rows(
    work: Workspace, reading: Reading, method: Method, rows: fx.Node
) -> dict[str, fx.Node]:
    """Insert what a method keeps for the next call, by name.

    ``rows`` is int64 ``[B, K]``, the stream rows that stay.
    """

    def remembered(stay: Tensor, *tensors: Tensor) -> list[Tensor]:
        taps, _ = reading.build(tensors)
        assert method.remember is not None
        kept = method.remember(taps, stay)
        return [kept[name] for name in method.state]

    nodes = work.splice(remembered, [rows, *reading.operands])
    return dict(zip(method.state, nodes, strict=True))


def combine_rows(work: Workspace, reading: Reading, method: Method, rows: fx.Node) -> fx.Node:
    """Insert the rows that stay with what a method folds into them, laid out as the stream is.

    ``rows`` is int64 ``[B, K]``, the stream rows that stay.
    """

    def combined(value: Tensor, stay: Tensor, *tensors: Tensor) -> Tensor:
        taps, _ = reading.build(tensors)
        assert method.combine is not None
        return reading.view.put(method.combine(taps, stay).to(value.dtype), value)

    return work.splice(combined, [reading.operands[0], rows, *reading.operands])
