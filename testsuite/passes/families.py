"""Zoo programs under plans, validated; exports and analyses are made once per test process."""

from __future__ import annotations

from collections.abc import Mapping

from testsuite.passes.analysed import Analysed, analysed
from torch import Tensor

from tokopt.ir.plan import Outputs, Plan, Stage
from tokopt.passes.apply_plan import Applied, apply_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.validate import Checked, Verdict, validate

GATES = {"structure", "identity", "selection", "oracle"}


def plan(text: str, *, seed: int = 0, outputs: Outputs = "full") -> Plan:
    """Return the plan of a text such as ``vision:1 flowcut 18, decoder:2 fastv 4``."""
    stages = [part.split() for part in text.split(",")]
    return Plan(tuple(Stage(s, m, int(k)) for s, m, k in stages), None, seed, outputs)


def checked(family: Analysed, chosen: Plan) -> Checked:
    """Rewrite a family's program by a plan."""
    applied: Applied = apply_plan(family.facts.exported, chosen, find_method)
    return Checked(family.facts, chosen, applied, find_method)


def every_input(family: Analysed) -> list[dict[str, Tensor]]:
    """Return the sample's inputs and its others, by name."""
    return [family.named(inputs) for inputs in family.sample.all_inputs]


def failures(done: Checked, batches: list[Mapping[str, Tensor]] | list[dict[str, Tensor]]) -> str:
    """Validate; return what failed in words, empty where nothing did.  Every gate must have run."""
    verdicts: list[Verdict] = list(validate(done, batches))
    assert {v.gate for v in verdicts} == GATES
    return "; ".join(f"{v.gate}: {v.message}" for v in verdicts if not v.passed)


__all__ = ["Analysed", "analysed", "checked", "every_input", "failures", "plan"]
