"""Judge one model of the zoo: what compiles, how exactly, and what is refused with which reason.

``python -m testsuite.zoo.judge NAME OUT.json`` runs in its own process, so that one model cannot
take another with it; ``table.py`` calls it for each.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from testsuite.zoo import registry
from testsuite.zoo.sample import Sample
from torch import Tensor

from tokopt.cli.one_program import output_names
from tokopt.cli.target_gate import against_target
from tokopt.ir.errors import BudgetError, TokoptError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack, analyse
from tokopt.ir.plan import Plan, Stage
from tokopt.ir.sites import Site
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.decompose import decompose
from tokopt.passes.default_plan import default_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.validate import Checked, validate
from tokopt.targets.registry import find

SHARES = (1.0, 0.5, 0.1)
BUDGET = 0.25
ONNX, AOTI, MLIR = "onnxruntime-cpu", "aotinductor", "mlir"
Places = dict[str, list[tuple[TokenStack, Site]]]


def judge(name: str, *, aotinductor: bool = False) -> dict[str, Any]:
    """Return the record of a model: a JSON object with a reason wherever a value is missing."""
    start = time.perf_counter()
    record: dict[str, Any] = {"name": name, "summary": registry.summary(name), "plans": []}
    sample = registry.make(name)
    record["export"] = max(differences(sample))
    record["nodes"] = len(sample.exported.graph.nodes)
    record["export_seconds"] = round(time.perf_counter() - start, 1)
    try:
        facts = analyse(normalize(sample.exported))
        assert facts.consumer
    except UnsupportedError as error:
        record["inspect"] = str(error)
        return record | {"seconds": round(time.perf_counter() - start, 1)}
    record["stacks"] = [described(stack) for stack in facts.stacks]
    inputs = named(sample, sample.all_inputs[-1])
    for where, places in chosen_places(facts).items():
        for share in SHARES:
            once = share == 0.5 and where == widest(facts)
            targets = [ONNX, *([AOTI] if aotinductor and once else [])]
            targets += [MLIR] if once and find(MLIR).available() is None else []
            done = attempt(facts, functools.partial(strided, places, share), inputs, targets)
            record["plans"].append({"where": where, "keep": share, **done})
    done = attempt(facts, functools.partial(default_plan, facts, BUDGET), inputs, [ONNX])
    record["plans"].append({"where": "default", "keep": BUDGET, **done})
    return record | {"seconds": round(time.perf_counter() - start, 1)}


def differences(sample: Sample) -> Iterator[float]:
    """Yield the largest difference to the eager model per input, relative above 1."""
    module = sample.exported.module()
    for inputs in sample.all_inputs:
        with torch.no_grad():
            want, got = sample.eager(*inputs), module(*inputs)
        assert got.shape == want.shape
        yield float((got - want).abs().max() / max(1.0, float(want.abs().max())))


def named(sample: Sample, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return inputs by the names the program gives them."""
    return dict(zip(map(str, sample.exported.graph_signature.user_inputs), inputs, strict=True))


def described(stack: TokenStack) -> dict[str, Any]:
    """Return what inspect says of a stack; barriers with the sites they bar."""
    barriers: dict[str, list[str]] = {}
    for site in stack.sites:
        if site.barrier is not None:
            barriers.setdefault(str(site.barrier), []).append(site.name)
    groups = sorted({site.group for site in stack.sites if site.legal})
    return {
        "role": stack.role,
        "layers": len(stack.stack.layers),
        "count": str(stack.count),
        "protected": stack.protected,
        "relay": stack.relay,
        "merge": _entry(stack),
        "legal": sum(site.legal for site in stack.sites),
        "sites": len(stack.sites),
        "groups": groups,
        "barriers": barriers,
    }


def _entry(stack: TokenStack) -> str | None:
    """Return how visual rows come into a stack, if they do."""
    if stack.merge is not None:
        return str(stack.merge.node.target).split(".")[1]
    return None if stack.boundary is None else "cross-attention"


def chosen_places(facts: Facts) -> Places:
    """Return a legal site on the vision side, one on the decoder's, and both; {} where none is."""
    found: Places = {}
    for where in ("vision", "decoder"):
        for stack in facts.stacks:
            legal = [site for site in stack.sites if site.legal]
            if stack.role.startswith(where) and legal and where not in found:
                found[where] = [(stack, legal[len(legal) // 2])]
    if len(found) == 2:
        found["both"] = [*found["vision"], *found["decoder"]]
    return found


def widest(facts: Facts) -> str:
    """Return the last of the places there are: both sides where both have a site."""
    return list(chosen_places(facts))[-1]


def strided(places: list[tuple[TokenStack, Site]], share: float) -> Plan:
    """Return stride stages that each keep ``share`` of what arrives, in whole groups."""
    stages, left = [], 1.0
    for stack, site in places:
        left *= share
        keep = int(int(str(stack.count)) * left) // site.group * site.group
        stages.append(Stage(site.name, "stride", max(site.group, keep)))
    return Plan(tuple(stages))


def attempt(
    facts: Facts, make: Callable[[], Plan], inputs: Mapping[str, Tensor], targets: list[str]
) -> dict[str, Any]:
    """Rewrite, verify and lower; return the differences, or the refusal."""
    found: dict[str, Any] = {}
    try:
        plan = make()
        found["stages"] = [f"{s.site} {s.method} {s.keep}" for s in plan.stages]
        applied = apply_plan(facts.exported, plan, find_method)
        checked = Checked(facts, plan, applied, find_method)
        for verdict in validate(checked, [inputs]):
            found[verdict.gate] = verdict.max_difference if verdict.passed else verdict.message
        final = decompose(applied.exported)
    except (UnsupportedError, BudgetError) as error:
        return found | {"refused": str(error)}
    names = output_names(facts.exported, len(plan.stages))
    names += applied.renewed
    for name in targets:
        start = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                find(name).lower(final, Path(folder), names)
                verdicts = against_target(find(name), Path(folder), checked, final, inputs, names)
                for verdict in verdicts:
                    good = verdict.max_difference if verdict.passed else verdict.message
                    found[name] = good if name not in found or not verdict.passed else found[name]
        except TokoptError as error:  # also what a runtime says of the file it is given
            found[name] = str(error)
        found[f"{name}_seconds"] = round(time.perf_counter() - start, 1)
    return found


def main() -> None:
    """Judge the model named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=registry.names())
    parser.add_argument("output", type=Path)
    parser.add_argument("--aotinductor", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    record = judge(args.name, aotinductor=args.aotinductor)
    args.output.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
