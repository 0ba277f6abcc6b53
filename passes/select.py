"""Select: the passes that insert token selection: one stage, or a whole plan file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.plan import Outputs, Plan, Quota, Stage, checked_quota
from tokopt.ir.program import Program
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.base import Pass, PassResult
from tokopt.passes.decompose import dialect_nodes
from tokopt.passes.methods.registry import find_method
from tokopt.passes.reused import reuses
from tokopt.passes.spec import NORMALIZED, Spec


@dataclass(frozen=True)
class ApplyPlan(Pass):
    """Insert the stages of a plan file."""

    file: str

    requires: ClassVar[tuple[Spec, ...]] = (NORMALIZED,)
    ensures: ClassVar[tuple[Spec, ...]] = (NORMALIZED,)

    def run(self, program: Program) -> PassResult:
        """Return the program with the plan applied to its main graph."""
        return inserted(program, Plan.from_toml(read_plan_text(self.file), self.file))


@dataclass(frozen=True)
class Select(Pass):
    """Insert one stage: keep ``keep`` visual rows at ``site``, chosen by ``method``.

    ``options``, ``until`` and ``quota`` are those of a plan's stage.
    """

    site: str
    method: str
    keep: int
    options: Mapping[str, int | float | str] = field(default_factory=dict)
    until: str | None = None
    quota: Quota = "joint"
    seed: int = 0
    outputs: Outputs = "full"

    requires: ClassVar[tuple[Spec, ...]] = (NORMALIZED,)
    ensures: ClassVar[tuple[Spec, ...]] = (NORMALIZED,)

    def run(self, program: Program) -> PassResult:
        """Return the program with the stage inserted in its main graph."""
        quota = checked_quota(self.quota, f"pass {self.name}")
        stage = Stage(self.site, self.method, self.keep, self.options, self.until, quota)
        return inserted(program, Plan((stage,), None, self.seed, self.outputs))


def inserted(program: Program, plan: Plan) -> PassResult:
    """Apply a plan to a program's main graph as a pass does."""
    if dialect_nodes(program.main.graph):
        raise InputError(
            "the program already has selections in it",
            expected="a program as it was exported",
            hint="put all stages into one plan: apply-plan{file=plan.toml}",
        )
    if not plan.stages and not plan.attention:
        return PassResult(program, modified=False, remarks=("the plan has no stage",))
    applied = apply_plan(program.main, plan, find_method)
    if applied.reference is not None:
        raise UnsupportedError(
            f"{reuses(plan)[0].method} makes two programs of one, and a pass gives one",
            hint="tokopt compile --plan makes an artifact of both",
        )
    added = len(applied.exported.graph.nodes) - len(program.main.graph.nodes)
    return PassResult(
        program.with_main(applied.exported),
        modified=True,
        statistics={"stages": len(plan.stages), "nodes added": added},
        remarks=(
            *(f"{s.method} keeps {s.keep} rows at {s.site}" for s in plan.stages),
            *(f"{a.method} rewrites attention from {a.site} on" for a in plan.attention),
        ),
    )


def read_plan_text(file: str) -> str:
    """Return a plan file's text; ``InputError`` where it cannot be read."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the plan cannot be read: {error}", where=file) from error
