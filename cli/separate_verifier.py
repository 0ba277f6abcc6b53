"""Separate verifier: the gates of an artifact of several programs, on the files as they lie there.

As in ``verifier.py``; the ``program`` gate compares all programs of ``program.pt2``, behind one
another, with those that the plan makes of the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.cache_gate import Programs, judge_cache
from tokopt.cli.coded_gate import judge_coded
from tokopt.cli.inputs import check_merges, fitting_inputs, inputs_needed
from tokopt.cli.separate import Separate
from tokopt.cli.separate_gates import judge_parts, judge_target, same_programs, torch_runner
from tokopt.cli.separate_programs import SeparatePrograms, original_of
from tokopt.cli.sparse_decode import sparse_program
from tokopt.cli.stored_cache import CACHE
from tokopt.ir.facts import Facts, analyse
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
from tokopt.targets.parts import FIRST, of_part
from tokopt.targets.program_file import PROGRAM, program_of


def verify_separate(
    folder: Path,
    manifest: Manifest,
    target: Target,
    original: Program | None,
    inputs: str | Path | Mapping[str, Tensor] | None,
) -> list[Verdict]:
    """Return every gate's verdict for each budget in turn, ``files`` aside.

    Raises ``InputError`` where there is nothing to run on, or a program is missing.
    """
    programs = load(folder / PROGRAM, check=False)  # its hash was compared
    if inputs is None and original is None:
        raise inputs_needed(manifest.signature, str(folder), ", or --against the original")
    if original is None:
        assert inputs is not None
        given = fitting_inputs(inputs, manifest.signature)
        check_merges(given, manifest.placeholders, inputs)
        ran = [(chain_of(own), saved_of(own, programs)) for own in manifest.parts.values()]
        return [v for how in ran for v in judge_target(target, folder, *how, given, None)]
    separate = Separate.of(original)
    given = separate.inputs(inputs)
    check_merges(given, manifest.placeholders, inputs)
    facts = analyse(separate.joined)
    gates = []
    for part, own in manifest.parts.items():
        gates += _verify_budget(folder, own, part, target, separate, facts, programs, given)
    return gates


def chain_of(manifest: Manifest) -> Chain:
    """Return how an artifact's programs run."""
    return Chain(manifest.programs, manifest.links)


def saved_of(manifest: Manifest, programs: Program) -> dict[str, ExportedProgram]:
    """Return a budget's programs by name.  ``InputError`` where the file lacks one."""
    every = [*manifest.programs, *(coder for one in manifest.programs for coder in one.coders)]
    return {one.name: program_of(programs, one.part) for one in every}


def _verify_budget(
    folder: Path,
    manifest: Manifest,
    part: str,
    target: Target,
    separate: Separate,
    facts: Facts,
    programs: Program,
    given: Mapping[str, Tensor],
) -> list[Verdict]:
    chain, saved = chain_of(manifest), saved_of(manifest, programs)
    own = separate.of_joined(given)
    file = folder / of_part(PLAN, part)
    plan = Plan.from_toml(read_plan_text(str(file)), str(file))
    applied = apply_plan(separate.joined, plan, find_method)
    checked = Checked(facts, plan, applied, find_method)
    parts, again = separate.parted(applied, budget=part)
    gates = [*validate(checked, [own]), *judge_parts(separate, checked, parts, again, given)]
    plain = Programs(parts, again)
    whole = SeparatePrograms(separate, facts, given, own, manifest.placeholders)
    gates += whole.judge_normal()
    if plan.cache:
        whole = whole.with_cache(plan.cache, folder / CACHE)
        assert whole.cache is not None
        parts, again = whole.cache.parted(parts, again.links, part)
        gates.append(judge_cache(whole.cache, plain, Programs(parts, again), given, own))
    compared = f"{PROGRAM}, with {PLAN} applied to the original again"
    if again != chain:
        message = "the programs or their links are others"
        return [*gates, Verdict("program", False, compared, message=message)]
    wanted = {name: one.exported for name, one in parts.items()}
    gates.append(same_programs(chain, wanted, saved, given, compared))
    known = original_of(whole, checked, chain)
    gates += judge_target(target, folder, chain, saved, given, known)
    if whole.cache is not None and part == FIRST:
        ground = (whole.cache, plain, Programs(parts, again), given)
        gates += judge_coded(*ground, f"{PROGRAM} in torch", torch_runner(saved))
        gates += judge_coded(*ground, target.name, lambda entry: target.open(folder, entry.part))
    if plan.decode is not None and part == FIRST and whole.decoding is not None:
        sparse = sparse_program(plain, whole.decoding, given, [plan], plan.decode, whole.cache)
        gates += [*sparse.judge(), sparse.judge_saved(program_of(programs, sparse.record.part))]
        gates += sparse.judge_target(target, folder)
    return gates
