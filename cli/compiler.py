"""Compiler: the whole main job, stage under stage: load, analyse, plan, rewrite, verify, lower.

``compile`` is the Python form of ``tokopt compile``.  An artifact whose gates failed is kept and
marked; its manifest says which gate and by how much.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from tokopt.cli.console import stage as shown_stage
from tokopt.cli.inputs import check_merges, inputs_for
from tokopt.cli.several import refuse_several
from tokopt.cli.target_gate import against_target
from tokopt.ir.errors import GateError, InputError
from tokopt.ir.facts import analyse
from tokopt.ir.load import load
from tokopt.ir.placeholders import find_placeholders
from tokopt.ir.plan import Outputs, Plan
from tokopt.ir.program import Program
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget_report import BudgetReport, report_budget
from tokopt.passes.decompose import decompose
from tokopt.passes.default_plan import default_fit
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.observe import observe
from tokopt.passes.select import read_plan_text
from tokopt.passes.validate import Checked, Verdict, validate
from tokopt.targets import registry
from tokopt.targets.artifact import LOG, PLAN, building, seal
from tokopt.targets.manifest import (
    FAILED,
    OK,
    Amount,
    Budget,
    GateResult,
    LayerSpend,
    Manifest,
    Run,
)
from tokopt.targets.program_file import save_program
from tokopt.targets.runtime import TRACE
from tokopt.targets.signature import signature_of


@dataclass
class Clock:
    """Seconds per stage, and the lines of the log."""

    quiet: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and show it on stderr."""
        start = time.perf_counter()
        try:
            if self.quiet:
                yield
            else:
                with shown_stage(name):
                    yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)
            self.lines.append(f"{name}: {self.seconds[name]} s")


@dataclass(frozen=True)
class Compiled:
    """What a compile made: where it is, what it spends, what was checked."""

    folder: Path
    plan: Plan
    budget: BudgetReport
    manifest: Manifest
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether every gate passed."""
        return self.manifest.status == OK


def compile(
    source: str | Path | Program,
    output: str | Path | None = None,
    *,
    budget: float | None = None,
    method: str | None = None,
    plan: str | Path | Plan | None = None,
    target: str | None = None,
    inputs: str | Path | Mapping[str, Tensor] | None = None,
    outputs: Outputs | None = None,
    seed: int | None = None,
    quiet: bool = True,
) -> Compiled:
    """Compile an exported model into an artifact folder.

    ``budget`` is the share of visual tokens left (mean over the consumer's layers); ``plan`` a
    plan or its file, applied exactly.  ``inputs`` (named tensors, or a safetensors file) are what
    the gates run on and, for calibrated methods, what is measured; the archive's example inputs
    where none are given.  ``outputs`` (``full`` where none is given) and ``seed`` (0) belong to a
    budget: a plan holds its own.  Raises ``TokoptError`` for everything a user can mend; an
    artifact whose gates failed is written, marked, and returned with ``ok`` false.  ``output`` is a
    folder; ``model.tokopt`` for ``model.pt2`` where none is given.
    """
    if (budget is None) == (plan is None):
        raise InputError("give either a budget or a plan", expected="--budget 0.1 or --plan FILE")
    if plan is not None:
        _refuse_beside_plan({"method": method, "seed": seed, "outputs": outputs})
    if budget is not None and not 0 < budget <= 1:
        raise InputError(f"budget {budget}", expected="a share of the visual tokens, in (0, 1]")
    folder = Path(output) if output is not None else default_folder(source)
    clock = Clock(quiet)
    chosen = registry.find(target) if target else registry.default()
    reason = chosen.available()
    if reason is not None:
        raise InputError(f"the target {chosen.name} is not available here: {reason}")
    if plan is not None and not isinstance(plan, Plan):
        plan = Plan.from_toml(read_plan_text(str(plan)), str(plan))
    with torch.no_grad(), clock.stage("load"):
        program = source if isinstance(source, Program) else load(source)
    refuse_several(program)
    exported = program.main
    given = inputs_for(exported, inputs)
    with torch.no_grad(), building(folder) as draft:
        with clock.stage("normalize"):
            normal = normalize(exported)
        with clock.stage("analyse"):
            facts = analyse(normal)
            placeholders = find_placeholders(facts)
            check_merges(given, placeholders, inputs)
        with clock.stage("plan"):
            note = ""
            if plan is None:
                assert budget is not None
                entropies = observe(facts, given).entropies
                fitted = default_fit(facts, budget, method, entropies, seed or 0)
                plan = Plan(fitted.plan.stages, budget, seed or 0, outputs or "full")
                note = fitted.note
            spent = report_budget(facts, plan)
        with clock.stage("rewrite"):
            applied = apply_plan(normal, plan, find_method)
        with clock.stage("verify"):
            checked = Checked(facts, plan, applied, find_method)
            verdicts = list(validate(checked, [given]))
        with clock.stage("lower"):
            final = decompose(applied.exported)
        names = output_names(exported, len(plan.stages))
        with clock.stage(f"lower to {chosen.name}"), redirect_stdout(io.StringIO()):
            stored = save_program(Program({program.main_name: final}), draft)
            chosen.lower(final, draft, names, stored)
        (draft / PLAN).write_text(plan.to_toml(), encoding="utf-8")
        with clock.stage("verify the target"):
            verdicts += against_target(chosen, draft, checked, final, given, names)
        passed = all(v.passed for v in verdicts)
        log = "\n".join([*clock.lines, *(str(v) for v in verdicts), ""])
        (draft / LOG).write_text(log, encoding="utf-8")
        manifest = seal(
            draft,
            Manifest(
                target=chosen.name,
                signature=signature_of(final, names),
                placeholders=placeholders,
                input_sha256=program.sha256,
                seed=plan.seed,
                budget=_budget(budget if budget is not None else plan.budget, spent, verdicts),
                gates=tuple(_gate(v) for v in verdicts),
                run=Run(
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    seconds=dict(clock.seconds),
                ),
                status=OK if passed else FAILED,
            ),
        )
    return Compiled(folder, plan, spent, manifest, note)


def default_folder(source: str | Path | Program) -> Path:
    """Return where an artifact goes by default: ``<model>.tokopt`` in the working directory."""
    name = source.source if isinstance(source, Program) else str(source)
    stem = Path(name).stem if not name.startswith("<") else "model"
    return Path(f"{stem}.tokopt")


def require_ok(compiled: Compiled) -> None:
    """Raise ``GateError`` naming the first gate that failed, if any."""
    failed = [gate for gate in compiled.manifest.gates if not gate.passed]
    if failed:
        raise GateError(
            f"gate {failed[0].gate} failed: {failed[0].note or failed[0].compared}",
            where=str(compiled.folder),
            expected=f"a difference of at most {failed[0].tolerance}",
            hint="the artifact is kept and marked; report the folder, or try another plan",
        )


def _refuse_beside_plan(given: Mapping[str, object]) -> None:
    """Refuse what a plan holds itself; ``given`` is by option, None where it was not given."""
    for option, value in given.items():
        if value is not None:
            raise InputError(
                f"--{option} cannot be given with --plan: the plan file holds it",
                expected=f"--plan without --{option}",
                hint=f"edit the plan file's {option}, or compile with --budget",
            )


def output_names(exported: torch.export.ExportedProgram, stages: int) -> list[str]:
    """Return the original outputs' names and those of the selection trace."""
    original = [spec.name for spec in signature_of(exported).outputs]
    traced = [f"{TRACE}{i}.{what}" for i in range(stages) for what in ("kept", "scores")]
    return [*original, *traced]


def _gate(verdict: Verdict) -> GateResult:
    return GateResult(
        verdict.gate,
        verdict.passed,
        verdict.compared,
        verdict.max_difference,
        verdict.tolerance,
        verdict.message,
    )


def _budget(requested: float | None, report: BudgetReport, verdicts: list[Verdict]) -> Budget:
    """Return the manifest's budget; measured where the selection gate counted the rows."""
    counted = any(v.gate == "selection" and v.passed for v in verdicts)
    total = report.total

    def amount(share: float) -> Amount:
        return Amount(share, share if counted else None)

    return Budget(
        {} if requested is None else {"tokens": requested},
        {"tokens": amount(total)},
        tuple(
            LayerSpend(f"{report.role}:{depth}", {"tokens": amount(rows / report.of)})
            for depth, rows in enumerate(report.rows)
        ),
    )
