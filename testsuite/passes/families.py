"""Zoo programs under plans, validated and lowered; what is costly is made once per test process."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testsuite.passes.analysed import Analysed, analysed
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.plan import Attending, Outputs, Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.decompose import decompose
from tokopt.passes.methods.registry import find_method
from tokopt.passes.validate import Checked, Verdict, validate
from tokopt.targets.base import Runner, Target
from tokopt.targets.registry import find

GATES = {"structure", "identity", "selection", "oracle"}


def plan(text: str, *, seed: int = 0, outputs: Outputs = "full") -> Plan:
    """Return the plan of a text such as ``vision:1 flowcut 18, decoder:2 fastv 4``.

    What has no count rewrites attention: ``decoder:1 var tau=3``.  Rows may come back:
    ``vision:1>vision:3 stride 9``.
    """
    parts = [part.split() for part in text.split(",")]
    stages = [p for p in parts if p[-1].isdecimal()]
    attention = tuple(
        Attending(site, name, {k: float(v) for k, _, v in (o.partition("=") for o in options)})
        for site, name, *options in (p for p in parts if p not in stages)
    )
    kept = tuple(
        Stage(s.partition(">")[0], m, int(k), until=s.partition(">")[2] or None)
        for s, m, k in stages
    )
    return Plan(kept, None, seed, outputs, attention)


def checked(family: Analysed, chosen: Plan) -> Checked:
    """Rewrite a family's program by a plan."""
    applied = apply_plan(family.facts.exported, chosen, find_method)
    return Checked(family.facts, chosen, applied, find_method)


def every_input(family: Analysed) -> list[dict[str, Tensor]]:
    """Return the sample's inputs and its others, by name."""
    return [family.named(inputs) for inputs in family.sample.all_inputs]


def verdicts(done: Checked, batches: Sequence[Mapping[str, Tensor]]) -> list[Verdict]:
    """Validate; every gate must have run."""
    found = list(validate(done, batches))
    assert {v.gate for v in found} == GATES
    return found


def failures(done: Checked, batches: Sequence[Mapping[str, Tensor]]) -> str:
    """Validate; return what failed in words, empty where nothing did."""
    return "; ".join(f"{v.gate}: {v.message}" for v in verdicts(done, batches) if not v.passed)


@dataclass(frozen=True)
class Lowered:
    """A rewritten program on a target: its files, its output names, a runner."""

    target: Target
    folder: Path
    family: Analysed
    checked: Checked
    program: ExportedProgram
    names: list[str]
    runner: Runner


@functools.cache
def rewritten(name: str, text: str) -> Checked:
    """Return a family's program under a plan."""
    return checked(analysed(name), plan(text))


@functools.cache
def lowered(name: str, text: str, target: str = "onnxruntime-cpu") -> Lowered:
    """Return a family's program under a plan, lowered to a target."""
    done, chosen = rewritten(name, text), find(target)
    program = decompose(done.applied.exported)
    traced = [f"trace.{i}.{w}" for i in range(len(done.plan.stages)) for w in ("kept", "scores")]
    remembered = [memory.output for memory in done.applied.memory]
    others = range(1, len(analysed(name).facts.exported.graph_signature.user_outputs))
    names = ["logits", *(f"output_{i}" for i in others), *traced, *remembered]
    folder = Path(tempfile.mkdtemp(prefix="tokopt-test-"))
    chosen.lower(program, folder, names)
    return Lowered(chosen, folder, analysed(name), done, program, names, chosen.open(folder))
