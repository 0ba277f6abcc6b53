"""Compiler: the whole main job, stage under stage: load, analyse, plan, rewrite, verify, lower.

``compile`` is the Python form of ``tokopt compile``.  An artifact whose gates failed is kept and
marked; its manifest says which gate and by how much.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from tokopt.cli.asked import (
    SEARCH,
    Wanted,
    checked_budgets,
    refuse_beside_plan,
    refuse_beside_search,
    refuse_limits,
    refuse_search,
    refuse_unjudged,
)
from tokopt.cli.buckets import (
    checked_buckets,
    judge_padding,
    padding_of,
    pieces_of,
    refuse_buckets,
)
from tokopt.cli.candidate import Candidate, Piece
from tokopt.cli.clock import Clock
from tokopt.cli.inputs import check_merges, inputs_for
from tokopt.cli.planner import Planner, device_for
from tokopt.cli.recorded import Costs
from tokopt.cli.separate_compiler import compile_separate
from tokopt.cli.target_gate import against_target
from tokopt.ir.errors import GateError, InputError
from tokopt.ir.facts import analyse
from tokopt.ir.load import load
from tokopt.ir.placeholders import find_placeholders
from tokopt.ir.plan import Outputs, Plan, Quota
from tokopt.ir.program import MAIN_NAMES, Program
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget_report import BudgetReport, Work, report_budget, report_work
from tokopt.passes.decompose import decompose
from tokopt.passes.limits import Limits
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.search.bounded import Bounded
from tokopt.passes.select import read_plan_text
from tokopt.passes.validate import Checked, validate
from tokopt.passes.within import Meter
from tokopt.targets import registry
from tokopt.targets.artifact import LOG, PLAN, building, seal
from tokopt.targets.manifest import FAILED, OK, Manifest, Run
from tokopt.targets.padding import Padding
from tokopt.targets.parts import FIRST, of_part, part_of
from tokopt.targets.program_file import program_name, save_program
from tokopt.targets.runtime import TRACE
from tokopt.targets.signature import signature_of


@dataclass(frozen=True)
class Compiled:
    """What a compile made: where it is, what it spends, what was checked.

    ``others``: the same of each further budget; ``manifest`` is as seen from this one.
    """

    folder: Path
    plan: Plan
    budget: BudgetReport
    work: Work
    manifest: Manifest
    note: str = ""
    others: tuple[Compiled, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every gate passed."""
        return self.manifest.status == OK


def compile(
    source: str | Path | Program,
    output: str | Path | None = None,
    *,
    budget: float | Sequence[float] | Limits | None = None,
    method: str | None = None,
    attention: str | None = None,
    quota: Quota | None = None,
    plan: str | Path | Plan | None = None,
    prompt_buckets: Sequence[int] | None = None,
    target: str | None = None,
    device: str | None = None,
    inputs: str | Path | Mapping[str, Tensor] | None = None,
    outputs: Outputs | None = None,
    seed: int | None = None,
    search: Wanted | None = None,
    quiet: bool = True,
) -> Compiled:
    """Compile an exported model into an artifact folder.

    An archive of several programs (vision, prefill, decode) gives an artifact of as many.
    ``budget`` is the share of visual tokens left (mean over the consumer's layers); of several,
    each gets its own program over the same weights, the first is what runs unless another is asked
    for.  ``Limits`` are one budget of several numbers, all of them kept; ``device`` says of what
    ``latency`` is predicted (this CPU, where the target runs on it).  ``attention`` asks for
    rewrites of a decoder's attention beside stages: ``var{p=0.6}``.
    ``prompt_buckets`` are constant prompt lengths: each gets a program (of each budget), and
    shorter prompts are padded to the next.  ``plan`` is a plan or its file, applied exactly.
    ``inputs`` (named tensors, or a safetensors file) are what the gates run on and, for calibrated
    methods, what is measured; the archive's example inputs where none are given.  ``outputs``
    (``full`` where none is given), ``seed`` (0) and ``quota`` (``joint``; ``image``: every image of
    a prompt keeps an equal share, see ``Stage``) belong to a budget: a plan holds its own.  Raises
    ``TokoptError`` for everything a user can mend; an artifact whose gates failed is written,
    marked, and returned with ``ok`` false.  ``output`` is a folder; ``model.tokopt`` for
    ``model.pt2`` where none is given.  ``search``: judge plans on samples and take the best for
    each budget; without it, the default method's published placement.
    """
    if (budget is None) == (plan is None):
        raise InputError("give either a budget or a plan", expected="--budget 0.1 or --plan FILE")
    if plan is not None:
        refuse_beside_plan(
            {
                "method": method,
                "attention": attention,
                "seed": seed,
                "outputs": outputs,
                "quota": quota,
            }
        )
    if search is not None:
        refuse_beside_search({"plan": plan, "method": method, "quota": quota})
        refuse_unjudged(attention)
    limits = budget if isinstance(budget, Limits) else None
    budgets = (budget.rows,) if isinstance(budget, Limits) else checked_budgets(budget)
    buckets = checked_buckets(prompt_buckets)
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
    if len(program.graphs) > 1:
        refuse_buckets(buckets, program.source)
        refuse_search(search, program.source)
        refuse_limits(limits, program.source)
        whole = compile_separate(
            program,
            folder,
            chosen,
            clock,
            budgets=budgets,
            method=method,
            attention=attention,
            quota=quota or "joint",
            plan=plan,
            inputs=inputs,
            outputs=outputs,
            seed=seed,
        )
        return Compiled(folder, whole.plan, whole.spent, whole.work, whole.manifest, whole.note)
    exported = program.main
    given = inputs_for(exported, inputs)
    with torch.no_grad(), building(folder) as draft:
        with clock.stage("normalize"):
            normal = normalize(exported)
        with clock.stage("analyse"):
            facts = analyse(normal)
            placeholders = find_placeholders(facts)
            check_merges(given, placeholders, inputs)
        searcher = None
        if search is not None:
            with clock.stage("calibration"):
                from tokopt.cli.searcher import Searcher  # Optuna takes a second to import

                ground = (facts, search, given, placeholders, program.sha256)
                searcher = Searcher(*ground, journal_of(folder), quiet)
        meter = Meter(facts, given, device_for(limits, chosen.name, device))
        joint = (quota or "joint", seed or 0, outputs or "full")
        planner = Planner(facts, given, method, attention, *joint)
        made: list[Candidate] = []
        for number in range(max(1, len(budgets))):
            with clock.stage("plan" if searcher is None else "search"):
                note = ""
                if searcher is not None:
                    bounded = None if limits is None else Bounded(meter, limits)
                    fitted = searcher.fit(budgets[number], seed or 0, bounded)
                    wanted = replace(fitted.plan, outputs=outputs or "full")
                    note = fitted.note
                elif plan is not None:
                    wanted = plan
                elif limits is not None:
                    wanted, note = planner.within(limits, meter)
                else:
                    wanted, note = planner.at(budgets[number])
                spent = report_budget(facts, wanted)
            with clock.stage("rewrite"):
                applied = apply_plan(normal, wanted, find_method)
                work = report_work(normal, applied, given)
                costs = Costs.of(meter, limits, wanted, work)
            with clock.stage("verify"):
                checked = Checked(facts, wanted, applied, find_method)
                verdicts = list(validate(checked, [given]))
            with clock.stage("lower"):
                final = decompose(applied.exported, keep=chosen.native)
            part = part_of(budgets[number]) if number else FIRST
            names = output_names(exported, len(wanted.stages))
            names += [one.output for one in applied.memory]
            padding: Padding | None = None
            pieces: tuple[Piece, ...] = (Piece(part, final, given),)
            if buckets:
                with clock.stage("buckets"):
                    padding = padding_of(checked, final, names, buckets, placeholders)
                    pieces = pieces_of(final, padding, part, checked, given, placeholders)
                    verdicts += judge_padding(checked, final, names, padding, pieces)
            found = (checked, verdicts, final, names, pieces, padding)
            made.append(Candidate(part, costs, note, spent, work, *found))
        every = [piece for one in made for piece in one.pieces]
        main = program.main_name if len(every) == 1 else MAIN_NAMES[0]
        graphs = {program_name(main, piece.part): decompose(piece.program) for piece in every}
        with clock.stage(f"lower to {chosen.name}"), redirect_stdout(io.StringIO()):
            stored = save_program(Program(graphs), draft)
            for one in made:
                for piece in one.pieces:
                    chosen.lower(piece.program, draft, one.names, stored, piece.part)
        for one in made:
            text = one.checked.plan.to_toml()
            (draft / of_part(PLAN, one.part)).write_text(text, encoding="utf-8")
        with clock.stage("verify the target"):
            for one in made:
                for piece in one.pieces:
                    run = (piece.program, piece.inputs, one.names, piece.part)
                    one.verdicts.extend(against_target(chosen, draft, one.checked, *run))
        verdicts = [verdict for one in made for verdict in one.verdicts]
        if searcher is not None:
            (draft / SEARCH).write_text(searcher.table(), encoding="utf-8")
        log = "\n".join([*clock.lines, *(str(v) for v in verdicts), ""])
        (draft / LOG).write_text(log, encoding="utf-8")
        first, *further = (one.recorded() for one in made)
        manifest = seal(
            draft,
            Manifest(
                target=chosen.name,
                signature=first.signature,
                placeholders=placeholders,
                input_sha256=program.sha256,
                seed=made[0].checked.plan.seed,
                budget=first.budget,
                gates=first.gates,
                memory=first.memory,
                padding=first.padding,
                run=Run(
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    seconds=dict(clock.seconds),
                ),
                variants=tuple(further),
                status=OK if all(v.passed for v in verdicts) else FAILED,
            ),
        )
    if searcher is not None:
        journal_of(folder).unlink(missing_ok=True)
    own, *others = (
        Compiled(folder, one.checked.plan, one.spent, one.work, manifest.parts[one.part], one.note)
        for one in made
    )
    return replace(own, others=tuple(others))


def default_folder(source: str | Path | Program) -> Path:
    """Return where an artifact goes by default: ``<model>.tokopt`` in the working directory."""
    name = source.source if isinstance(source, Program) else str(source)
    stem = Path(name).stem if not name.startswith("<") else "model"
    return Path(f"{stem}.tokopt")


def journal_of(folder: Path) -> Path:
    """Return the file beside an artifact's folder that a search goes on from if it is killed."""
    return folder.with_name(f"{folder.name}.search.log")


def require_ok(compiled: Compiled) -> None:
    """Raise ``GateError`` naming the first gate that failed, if any."""
    every = (compiled, *compiled.others)
    failed = [gate for one in every for gate in one.manifest.gates if not gate.passed]
    if failed:
        raise GateError(
            f"gate {failed[0].gate} failed: {failed[0].note or failed[0].compared}",
            where=str(compiled.folder),
            expected=f"a difference of at most {failed[0].tolerance}",
            hint="the artifact is kept and marked; report the folder, or try another plan",
        )


def output_names(exported: torch.export.ExportedProgram, stages: int) -> list[str]:
    """Return the original outputs' names and those of the selection trace."""
    original = [spec.name for spec in signature_of(exported).outputs]
    traced = [f"{TRACE}{i}.{what}" for i in range(stages) for what in ("kept", "scores")]
    return [*original, *traced]
