"""Validate: prove a rewrite on real inputs, before anything is lowered.

``structure``  the rewritten graph is sound, and every recorded shape is the one its operator gives
``identity``   the same rewrite with every row kept gives the original's outputs
``selection``  each stage chose what the masked oracle chooses (near-ties aside)
``oracle``     the outputs are those of the original graph with the dropped rows masked

The oracle shares nothing with the rewriter but the analysis and the methods' scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.facts import Facts
from tokopt.ir.memory import next_call, with_memory
from tokopt.ir.plan import Plan
from tokopt.ir.structure import structural_faults
from tokopt.ir.tolerances import IDENTITY, ORACLE, TIE
from tokopt.passes.apply_plan import Applied, apply_plan
from tokopt.passes.budget_report import taken
from tokopt.passes.methods.method import Method
from tokopt.passes.oracle.compare import compare_outputs, compare_selection, torn_groups
from tokopt.passes.oracle.oracle import OracleResult, run_oracle
from tokopt.passes.oracle.reusing import reference_values
from tokopt.passes.reference import states_in, with_reference, without_reuse
from tokopt.passes.reused import reuses
from tokopt.passes.rewriting import neutral
from tokopt.passes.run_program import run_program as run_program  # also asked for here


@dataclass(frozen=True)
class Verdict:
    """One gate: ``compared`` says what with what; ``message`` what was wrong, if anything."""

    gate: str
    passed: bool
    compared: str
    max_difference: float | None = None
    tolerance: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Checked:
    """What is validated: the original's facts, the plan, the rewritten program."""

    facts: Facts
    plan: Plan
    applied: Applied
    methods: Callable[[str], Method]


def for_oracle(checked: Checked, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a program's inputs but for the counter of a reference, whose plan knows of none."""
    counted = states_in(checked.applied.memory) if not reuses(checked.plan) else ()
    known = {one.input for one in counted}
    return {name: value for name, value in inputs.items() if name not in known}


def reference_of(checked: Checked) -> Checked | None:
    """Return the program that computes every row, where the other reuses some, and its plan."""
    applied = checked.applied.reference
    if applied is None:
        return None
    return replace(checked, plan=without_reuse(checked.plan), applied=applied)


def validate(checked: Checked, batches: Sequence[Mapping[str, Tensor]]) -> Iterator[Verdict]:
    """Yield each gate's verdict, on every set of inputs; stops at nothing."""
    faults = structural_faults(checked.applied.exported)
    yield Verdict("structure", not faults, "the rewritten graph", message="; ".join(faults[:3]))
    idle = _neutral(checked)
    for inputs in batches:
        yield from _reference(checked, inputs)
        yield _identity(checked, idle, inputs)
        yield from _against_oracle(checked, inputs)


def split_trace(checked: Checked, outputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Split a rewritten program's outputs: the original's and what is remembered; the kept rows."""
    behind = len(outputs) - len(checked.applied.renewed)
    count = behind - 2 * len(checked.applied.trace)
    kept = [outputs[count + 2 * i] for i in range(len(checked.applied.trace))]
    return [*outputs[:count], *outputs[behind:]], kept


def _neutral(checked: Checked) -> ExportedProgram:
    """Return the program with the same stages, each keeping every row."""
    facts = checked.facts
    stages = []
    for stage in checked.plan.stages:
        stack, _ = facts.find_site(stage.site)
        assert isinstance(stack.count, int)
        stages.append(replace(stage, keep=stack.count))
    plan = replace(neutral(checked.plan), stages=tuple(stages))
    return apply_plan(facts.exported, plan, checked.methods).exported


def _identity(checked: Checked, idle: ExportedProgram, inputs: Mapping[str, Tensor]) -> Verdict:
    reference = run_program(checked.facts.exported, inputs, full=True)
    whole = with_memory(checked.applied.memory, inputs)
    results = run_program(idle, whole, full=True)[: len(reference)]
    worst = 0.0
    for wanted, got in zip(reference, results, strict=True):
        if got.shape != wanted.shape:
            got = got[tuple(slice(-size, None) for size in got.shape)]
            wanted = wanted[tuple(slice(-size, None) for size in got.shape)]
        worst = max(worst, relative_difference(wanted, got))
    message = "" if worst <= IDENTITY else f"keeping every row changes the outputs by {worst:.3g}"
    what = "every stage keeping all rows, with the original"
    return Verdict("identity", worst <= IDENTITY, what, worst, IDENTITY, message)


NEAR_TIES = 1e-3
"""The share of codes that may be others: values half-way between two are rounded either way."""


def is_code(value: Tensor) -> bool:
    """Return whether numbers of one byte, which are codes of a stored cache."""
    return value.dtype.itemsize == 1 and value.dtype is not torch.bool


def same_bytes(wanted: Tensor, got: Tensor) -> bool:
    """Return whether tensors of one dtype are equal bit for bit."""
    return bool((wanted.view(torch.uint8) == got.view(torch.uint8)).all())


def relative_difference(wanted: Tensor, got: Tensor) -> float:
    """Return the largest absolute difference over the largest value (at least 1).

    Of codes: 0 where as few differ as may be near-ties, else the share that does.
    """
    if wanted.numel() == 0:
        return 0.0
    if is_code(wanted):
        others = (wanted.view(torch.uint8) != got.view(torch.uint8)).double().mean()
        return 0.0 if others <= NEAR_TIES else float(others)
    wanted, got = wanted.double(), got.double()
    scale = max(1.0, float(wanted.abs().nan_to_num(0, 0, 0).max()))
    gap = torch.where(wanted == got, 0.0, (wanted - got).abs())
    return float(gap.max()) / scale


def _against_oracle(checked: Checked, inputs: Mapping[str, Tensor]) -> Iterator[Verdict]:
    """Yield the verdicts on a call, and where stages remember something on the call behind it."""
    memory, renewed = checked.applied.memory, checked.applied.renewed
    inputs = with_reference(checked.facts, checked.plan, checked.applied, inputs)
    outputs, kept = split_trace(checked, run_program(checked.applied.exported, inputs, full=True))
    yield from _called(checked, inputs, outputs, kept)
    if memory:
        again = dict(zip(renewed, outputs[-len(renewed) :], strict=True))
        inputs = {**inputs, **next_call(memory, again)}
        ran = run_program(checked.applied.exported, inputs, full=True)
        yield from _called(checked, inputs, *split_trace(checked, ran))


def _reference(checked: Checked, inputs: Mapping[str, Tensor]) -> Iterator[Verdict]:
    """Yield the verdicts on the program that computes every row, and on what it keeps of them."""
    own = reference_of(checked)
    if own is None:
        return
    applied, what = own.applied, "the reference program"
    faults = structural_faults(applied.exported)
    yield Verdict("structure", not faults, what, message="; ".join(faults[:3]))
    states = states_in(applied.memory)
    given = taken(applied, with_memory(applied.memory, inputs))
    outputs, kept = split_trace(own, run_program(applied.exported, given, full=True))
    first, values = outputs[: -len(states)], outputs[-len(states) :]
    yield from _called(own, for_oracle(own, given), first, kept, what)
    wanted = reference_values(checked.facts, checked.plan, inputs)
    pairs = zip(states, values, strict=True)
    worst = max(relative_difference(wanted[one.input], value) for one, value in pairs)
    message = "" if worst <= IDENTITY else f"what is kept of every row differs by {worst:.3g}"
    what = f"what {what} keeps, with values of the original's run"
    yield Verdict("oracle", worst <= IDENTITY, what, worst, IDENTITY, message)


def _called(
    checked: Checked,
    inputs: Mapping[str, Tensor],
    outputs: list[Tensor],
    kept: list[Tensor],
    who: str = "the rewritten program",
) -> Iterator[Verdict]:
    free = run_oracle(checked.facts, checked.plan, inputs, checked.methods)
    alive = [alive_rows(rows, c.alive) for rows, c in zip(kept, free.stages, strict=True)]
    yield from judge(checked, inputs, outputs, alive, free, who)


def alive_rows(kept: Tensor, like: Tensor) -> Tensor:
    """Return bool ``[B, N]`` from the indices of kept rows ``[B, K]``."""
    return torch.zeros_like(like).scatter(1, kept.to(like.device), True)


def judge(
    checked: Checked,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[Tensor],
    alive: Sequence[Tensor],
    free: OracleResult,
    what: str,
    tolerance: float = ORACLE,
    tie: float = TIE,
) -> Iterator[Verdict]:
    """Yield the verdicts on someone's choices and outputs against the oracle's."""
    same = all(bool((a == c.alive).all()) for a, c in zip(alive, free.stages, strict=True))
    oracle, chose = free, f"rows kept by {what}, with the oracle's"
    if torn := torn_groups(free, alive):
        yield Verdict("selection", False, chose, message="; ".join(torn[:3]))
        yield Verdict("oracle", False, chose, message="not compared: groups were torn apart")
        return
    if not same:  # near-ties: judge the outputs on the choices that were made
        oracle = run_oracle(checked.facts, checked.plan, inputs, checked.methods, alive, tie)
    lines = compare_selection(oracle, alive, tie)
    yield Verdict("selection", not lines, chose, message="; ".join(lines[:3]))
    names = list(oracle.outputs)
    given = dict(zip(names, outputs, strict=True))
    difference = compare_outputs(oracle.outputs, given, tolerance)
    worst = max((_masked_difference(oracle.outputs[n], given[n]) for n in names), default=0.0)
    yield Verdict(
        "oracle",
        difference is None,
        f"{what}, with the original run with dropped rows masked",
        worst,
        tolerance,
        "" if difference is None else str(difference),
    )


def _masked_difference(wanted: Tensor, got: Tensor) -> float:
    """Return the relative difference where the oracle has a value (shorter outputs: nan)."""
    if wanted.shape != got.shape:
        return 0.0
    there = ~wanted.isnan()
    return relative_difference(wanted[there], got[there])
