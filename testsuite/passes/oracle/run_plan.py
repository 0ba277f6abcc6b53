"""Export a tiny model, run a plan's oracle on it, compare with rows computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from testsuite.passes.oracle.remover import Remover
from testsuite.passes.oracle.sample_methods import METHODS
from torch import Tensor, nn

from tokopt.ir.facts import Facts, analyse
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.normalize import normalize
from tokopt.passes.oracle.oracle import OracleResult, run_oracle


def analysed(module: nn.Module, inputs: tuple[Tensor, ...]) -> Facts:
    """Return the facts of an exported module."""
    with torch.no_grad():
        return analyse(normalize(torch.export.export(module.eval(), inputs, strict=False)))


def run_plan(
    facts: Facts, stages: Sequence[Stage], *inputs: Tensor, forced: Sequence[Tensor] | None = None
) -> OracleResult:
    """Run the oracle on inputs in the program's order."""
    names = [s.arg.name for s in facts.exported.graph_signature.input_specs if not s.target]
    given = dict(zip(names, inputs, strict=True))
    return run_oracle(facts, Plan(tuple(stages)), given, METHODS.__getitem__, forced)


def same(found: Tensor, want: Tensor) -> None:
    """Compare; NaN equals NaN."""
    torch.testing.assert_close(found, want, equal_nan=True, rtol=1e-4, atol=1e-5)


def same_rows(found: Tensor, want: Tensor, places: Tensor) -> None:
    """``found [B, N, C]`` must be ``want [B, K, C]`` at ``places`` and NaN elsewhere."""
    index = places[..., None].expand(-1, -1, found.shape[-1])
    same(found, torch.full_like(found, torch.nan).scatter(1, index, want))


def same_choices(result: OracleResult, *removers: Remover) -> None:
    """Every stage must have scored and left the rows that the references scored and left."""
    scored = [pair for remover in removers for pair in remover.scored]
    left = [places for remover in removers for places in remover.left]
    for choice, (places, score), stay in zip(result.stages, scored, left, strict=True):
        same(choice.raw, torch.full_like(choice.raw, torch.nan).scatter(1, places, score))
        assert torch.equal(choice.alive, torch.zeros_like(choice.alive).scatter(1, stay, True))
