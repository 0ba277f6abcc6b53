"""Separate verifier: the gates of an artifact of several programs, on the files as they lie there.

As in ``verifier.py``; the ``program`` gate compares all programs of ``program.pt2``, behind one
another, with those that the plan makes of the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tokopt.cli.inputs import check_merges, fitting_inputs, inputs_needed
from tokopt.cli.separate import Separate
from tokopt.cli.separate_gates import Original, judge_parts, judge_target, same_programs
from tokopt.ir.errors import InputError
from tokopt.ir.facts import analyse
from tokopt.ir.load import load
from tokopt.ir.plan import Plan
from tokopt.ir.program import Program
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.select import read_plan_text
from tokopt.passes.validate import Checked, Verdict, validate
from tokopt.targets.artifact import PLAN
from tokopt.targets.base import Target
from tokopt.targets.chained import Chain
from tokopt.targets.manifest import Manifest
from tokopt.targets.program_file import PROGRAM


def verify_separate(
    folder: Path,
    manifest: Manifest,
    target: Target,
    original: Program | None,
    inputs: str | Path | Mapping[str, Tensor] | None,
) -> list[Verdict]:
    """Return every gate's verdict, ``files`` aside.

    Raises ``InputError`` where there is nothing to run on, or a program is missing.
    """
    chain = Chain(manifest.programs, manifest.links)
    saved = load(folder / PROGRAM, check=False).graphs  # its hash was compared
    missing = [program.name for program in chain.programs if program.name not in saved]
    if missing:
        raise InputError(f"the program {missing[0]!r} is missing", where=str(folder / PROGRAM))
    if inputs is None and original is None:
        raise inputs_needed(manifest.signature, str(folder), ", or --against the original")
    if original is None:
        assert inputs is not None
        given = fitting_inputs(inputs, manifest.signature)
        check_merges(given, manifest.placeholders, inputs)
        return list(judge_target(target, folder, chain, saved, given, None))
    separate = Separate.of(original)
    given = separate.inputs(inputs)
    check_merges(given, manifest.placeholders, inputs)
    own = separate.of_joined(given)
    plan = Plan.from_toml(read_plan_text(str(folder / PLAN)), str(folder / PLAN))
    applied = apply_plan(separate.joined, plan, find_method)
    checked = Checked(analyse(separate.joined), plan, applied, find_method)
    parts, again = separate.parted(applied)
    gates = [*validate(checked, [own]), *judge_parts(separate, checked, parts, again, given)]
    compared = f"{PROGRAM}, with {PLAN} applied to the original again"
    if again != chain:
        message = "the programs or their links are others"
        return [*gates, Verdict("program", False, compared, message=message)]
    wanted = {name: one.exported for name, one in parts.items()}
    gates.append(same_programs(chain, wanted, saved, given, compared))
    known = Original(checked, own, separate.outer_outputs(chain))
    return [*gates, *judge_target(target, folder, chain, saved, given, known)]
