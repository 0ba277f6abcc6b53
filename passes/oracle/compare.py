"""Compare: a compiled program's choices and outputs against the oracle's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokopt.passes.oracle.oracle import OracleResult
from tokopt.passes.oracle.placed import Choice, Pool


def compare_selection(oracle: OracleResult, alive: Sequence[Tensor], epsilon: float) -> list[str]:
    """Return what is wrong with a compiled program's choices, a line per row; empty: nothing.

    ``alive`` is bool ``[B, N]`` per stage: the rows left behind it, over the rows of the original.
    Rows that may not be dropped must be there and counts must be exact.  Which candidates stay may
    differ only where a row's score is nearer than ``epsilon`` to the threshold (the worst score
    that stays), relative to the item's largest score; 0 allows nothing.  Where a plan has several
    stages run the oracle with ``forced=alive``: each stage is then judged on the rows it had.
    """
    found: list[str] = []
    if len(alive) != len(oracle.stages):
        found.append(f"{len(alive)} choices for {len(oracle.stages)} stages")
    for number, (choice, rows) in enumerate(zip(oracle.stages, alive, strict=False)):
        name = f"stage {number} ({choice.stage.method} at {choice.stage.site})"
        if rows.shape != choice.alive.shape:
            found.append(f"{name}: rows {tuple(rows.shape)}, expected {tuple(choice.alive.shape)}")
            continue
        for item in range(len(rows)):
            lines = _compare_item(choice, item, rows[item].cpu(), epsilon)
            found += [f"{name}, item {item}: {line}" for line in lines]
    return found


def _compare_item(choice: Choice, item: int, alive: Tensor, epsilon: float) -> list[str]:
    scores, free = choice.scores[item].double().cpu(), choice.candidates[item].cpu()
    before = ~scores.isnan()
    lines = [f"row {r} came back: an earlier stage dropped it" for r in _where(alive & ~before)]
    lines += [f"row {r} is no candidate and was dropped" for r in _where(~alive & before & ~free)]
    lines += _torn(choice, alive)
    for pool in choice.pools[item]:
        lines += _compare_pool(pool, scores, alive, epsilon)
    return lines


def _compare_pool(pool: Pool, scores: Tensor, alive: Tensor, epsilon: float) -> list[str]:
    free, keep, lines = pool.rows.cpu(), pool.keep, list[str]()
    kept = int((alive & free).sum())
    if kept != keep:
        lines.append(f"{kept} candidates stay, expected {keep}")
    order = sorted(_where(free), key=lambda row: (-float(scores[row]), row))
    best = torch.zeros_like(free)
    best[order[:keep]] = True
    threshold = float(scores[order[keep - 1]]) if keep else torch.inf
    finite = scores[free & scores.isfinite()].abs().tolist()
    for row in _where(free & (best != alive)):
        score = float(scores[row])
        gap = 0.0 if score == threshold else abs(score - threshold)
        if gap >= epsilon * max(finite, default=1.0) and (gap > 0 or epsilon == 0):
            what = "dropped" if best[row] else "kept"
            lines.append(f"row {row} was {what}: score {score:.9g}, threshold {threshold:.9g}")
    return lines


def torn_groups(oracle: OracleResult, alive: Sequence[Tensor]) -> list[str]:
    """Return, a line each, the groups of which some rows were kept and others not.

    No program could run on such a choice, the oracle's included.
    """
    return [
        f"stage {number} ({choice.stage.method} at {choice.stage.site}), item {item}: {line}"
        for number, (choice, rows) in enumerate(zip(oracle.stages, alive, strict=False))
        for item in range(len(rows))
        for line in _torn(choice, rows[item].cpu())
    ]


def _torn(choice: Choice, alive: Tensor) -> list[str]:
    table = choice.table.cpu()
    torn = table[alive[table].any(1) != alive[table].all(1), 0].tolist()
    return [f"the group of rows from {row} on was torn apart" for row in torn]


def _where(mask: Tensor) -> list[int]:
    return [int(row) for row in mask.nonzero().flatten()]


@dataclass(frozen=True)
class Difference:
    """The first value that is wrong: ``found`` instead of ``expected`` at ``index`` of ``output``.

    ``error`` is relative to the output's largest value; ``count`` values are wrong in all.  Where a
    whole output is missing or of an impossible shape, ``what`` says so and ``index`` is empty.
    """

    output: str
    index: tuple[int, ...]
    expected: float
    found: float
    error: float
    count: int
    what: str

    def __str__(self) -> str:
        if not self.index:
            return f"output {self.output!r} {self.what}"
        return (
            f"output {self.output!r} at {list(self.index)} ({self.what}): expected "
            f"{self.expected:.9g}, found {self.found:.9g}, off by {self.error:.3g} of the largest "
            f"value; {self.count} values are wrong"
        )


def compare_outputs(
    oracle_outputs: Mapping[str, Tensor],
    compiled_outputs: Mapping[str, Tensor],
    tolerance: float,
    fill: float = 0.0,
) -> Difference | None:
    """Return the first value of a compiled program that is wrong, or None.

    Values that are NaN in the oracle (dropped rows) must be exactly ``fill``; the others may differ
    by ``tolerance`` times the output's largest value.  An output that is shorter than the
    oracle's (caches, kept rows only) must hold the values that are left, in order.
    """
    for name, expected in oracle_outputs.items():
        if name not in compiled_outputs:
            return _absent(name, "is missing")
        wrong = _compare_output(name, expected.cpu(), compiled_outputs[name].cpu(), tolerance, fill)
        if wrong is not None:
            return wrong
    return None


def _compare_output(
    name: str, expected: Tensor, found: Tensor, tolerance: float, fill: float
) -> Difference | None:
    want, got, dead = expected.double(), found.double(), expected.isnan()
    if got.shape != want.shape:
        shorter = got.ndim == want.ndim and all(
            a <= b for a, b in zip(got.shape, want.shape, strict=True)
        )
        if not shorter or got.numel() != int((~dead).sum()):
            return _absent(name, f"has shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        got = torch.full_like(want, fill).masked_scatter(~dead, got)  # row-major order is kept
    alive = want[~dead]
    finite = alive[alive.isfinite()].abs()
    scale = max(float(finite.max()), torch.finfo(torch.float32).tiny) if len(finite) else 1.0
    error = torch.where(want == got, 0.0, (want - got).abs() / scale)  # equal infinities are equal
    wrong = torch.where(dead, got != fill, ~(error <= tolerance))
    if not bool(wrong.any()):
        return None
    index = tuple(int(i) for i in wrong.nonzero()[0])
    here = bool(dead[index])
    wanted, given = fill if here else float(want[index]), float(got[index])
    what = "a dropped row, which is filled" if here else "a row that stays"
    off, count = abs(wanted - given) / scale, int(wrong.sum())
    return Difference(name, index, wanted, given, off, count, what)


def _absent(name: str, what: str) -> Difference:
    return Difference(name, (), torch.nan, torch.nan, torch.nan, 0, what)
