"""Verifier: repeat the gates of a compile on an artifact folder as it lies there now.

``files``      every file is what the manifest says
``target``     what the target computes is what ``program.pt2`` computes, the same rows kept

and with the archive it was made from:

``structure``, ``identity``, ``selection``, ``oracle``   the plan applied to the original again
``program``    ``program.pt2`` is that rewritten program
``padding``    or, for each prompt bucket, computes on a padded prompt what that program computes

For every budget of the artifact in turn; several programs are ``separate_verifier.py``'s.  Together
they tie the lowered files to the original, whatever made the artifact.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.buckets import fitting, judge_padding
from tokopt.cli.candidate import Piece
from tokopt.cli.inputs import check_merges, example_inputs, fitting_inputs, inputs_needed
from tokopt.cli.normal_gate import judge_normal
from tokopt.cli.separate_verifier import verify_separate
from tokopt.cli.target_gate import against_target
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, analyse
from tokopt.ir.load import load
from tokopt.ir.memory import with_memory
from tokopt.ir.plan import Plan
from tokopt.ir.program import Program
from tokopt.ir.tolerances import IDENTITY
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget_report import taken
from tokopt.passes.decompose import decompose
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.reference import with_reference
from tokopt.passes.select import read_plan_text
from tokopt.passes.validate import (
    Checked,
    Verdict,
    reference_of,
    relative_difference,
    run_program,
    validate,
)
from tokopt.targets import registry
from tokopt.targets.artifact import PLAN
from tokopt.targets.base import Target
from tokopt.targets.chained import signature_for
from tokopt.targets.hashing import check_files
from tokopt.targets.manifest import Manifest, read_manifest
from tokopt.targets.parts import bucket_part, of_part
from tokopt.targets.program_file import PROGRAM, program_of
from tokopt.targets.refresh import Refresh


def verify(
    folder: str | Path,
    *,
    against: str | Path | None = None,
    inputs: str | Path | Mapping[str, Tensor] | None = None,
    target: str | None = None,
) -> list[Verdict]:
    """Return every gate's verdict; after a file that changed, nothing else is opened.

    ``against`` is the archive the artifact was made from; its example inputs serve where no
    ``inputs`` are given.  Raises ``InputError`` where there is neither, where ``against`` is
    another archive than the manifest's, and where ``folder`` is no artifact.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    changed = _changed_file(folder, manifest)
    if not changed.passed:
        return [changed]
    runs_on = open_target(target or manifest.target, folder)
    original = None if against is None else original_of(manifest, against)
    if manifest.programs:
        with torch.no_grad():
            gates = verify_separate(folder, manifest, runs_on, original, inputs)
        return [changed, *gates]
    given = _inputs(manifest, folder, inputs, original)
    with torch.no_grad():
        programs = load(folder / PROGRAM, check=False)  # its hash was compared
        facts = None if original is None else analyse(normalize(original.main))
        gates = [changed]
        if original is not None and facts is not None:
            gates += judge_normal(original.main, facts.exported, given)
        for part, own in manifest.parts.items():
            names = [spec.name for spec in own.signature.outputs]
            whole = with_memory(own.memory, given)
            checked = None if facts is None else _again(facts, folder / of_part(PLAN, part))
            if checked is not None:
                whole = with_reference(checked.facts, checked.plan, checked.applied, given)
            pieces = _pieces(manifest, own, part, programs, whole)
            if own.refresh is not None:
                pieces.append(_reference(own.refresh, programs, given, checked))
            if checked is not None:
                gates += validate(checked, [given])
                if own.padding is None:
                    gates.append(_same_program(checked, pieces[0].program, whole))
                    gates += [
                        _same_program(one.checked, one.program, taken(one.checked.applied, whole))
                        for one in pieces
                        if one.checked is not None
                    ]
                else:
                    free = decompose(checked.applied.exported)
                    gates += judge_padding(checked, free, names, own.padding, pieces)
            for piece in pieces:
                run = (piece.program, piece.inputs, piece.names or names, piece.part)
                gates += against_target(runs_on, folder, piece.checked or checked, *run)
    return gates


def open_target(name: str, folder: Path) -> Target:
    """Return a target that runs here; ``UnsupportedError`` says why it does not."""
    chosen = registry.find(name)
    reason = chosen.available()
    if reason is not None:
        raise UnsupportedError(
            f"the artifact's target {name} is not available here: {reason}",
            where=str(folder),
            hint="an ONNX Runtime artifact also runs with --target onnxruntime-cpu",
        )
    return chosen


def original_of(manifest: Manifest, against: str | Path) -> Program:
    """Load the archive an artifact was made from.  ``InputError`` where it is another one."""
    program = load(against)
    if program.sha256 != manifest.input_sha256:
        made_from = manifest.input_sha256 or "a program in memory"
        raise InputError(
            "the artifact was not made from this archive",
            where=str(against),
            expected=f"sha256 {made_from}, found {program.sha256}",
            hint="give the very file that was compiled",
        )
    return program


def _changed_file(folder: Path, manifest: Manifest) -> Verdict:
    what = "the files, with the sha256 in the manifest"
    try:
        check_files(folder, {**manifest.files, **manifest.run.files})
    except InputError as error:
        return Verdict("files", False, what, message=f"{error.what}: {error.where}")
    return Verdict("files", True, what)


def _inputs(
    manifest: Manifest,
    folder: Path,
    inputs: str | Path | Mapping[str, Tensor] | None,
    original: Program | None,
) -> dict[str, Tensor]:
    """Return what the gates run on: artifacts carry no inputs of their own."""
    if inputs is None and original is None:
        raise inputs_needed(signature_for(manifest, ()), str(folder), ", or --against the original")
    if inputs is None:
        assert original is not None
        inputs = example_inputs(original.main)
    given = fitting_inputs(inputs, signature_for(manifest, ()))
    check_merges(given, manifest.placeholders, inputs)
    return given


def _pieces(
    manifest: Manifest, own: Manifest, part: str, programs: Program, given: Mapping[str, Tensor]
) -> list[Piece]:
    """Return the saved programs of a budget, one for each prompt bucket where it has some."""
    padding = own.padding
    if padding is None:
        return [Piece(part, program_of(programs, part), given)]
    pieces = []
    for bucket in padding.buckets:
        name = bucket_part(part, bucket, padding.buckets)
        prompt = fitting(given, padding, bucket, manifest.placeholders)
        padded = padding.padded(prompt, bucket)
        pieces.append(Piece(name, program_of(programs, name), padded, prompt))
    return pieces


def _reference(
    refresh: Refresh, programs: Program, given: Mapping[str, Tensor], checked: Checked | None
) -> Piece:
    """Return the saved program that computes every row."""
    names = [spec.name for spec in refresh.signature.outputs]
    own = None if checked is None else reference_of(checked)
    program = program_of(programs, refresh.part)
    return Piece(refresh.part, program, given, names=names, checked=own)


def _again(facts: Facts, file: Path) -> Checked:
    """Apply a plan of the artifact to the original once more."""
    plan = Plan.from_toml(read_plan_text(str(file)), str(file))
    return Checked(facts, plan, apply_plan(facts.exported, plan, find_method), find_method)


def _same_program(
    checked: Checked, saved: ExportedProgram, inputs: Mapping[str, Tensor]
) -> Verdict:
    """Compare ``program.pt2`` with the plan applied again, kept rows and scores included."""
    compared = f"{PROGRAM}, with {PLAN} applied to the original again"
    wanted = run_program(decompose(checked.applied.exported), inputs)
    got = run_program(saved, inputs)
    if [(t.shape, t.dtype) for t in wanted] != [(t.shape, t.dtype) for t in got]:
        return Verdict("program", False, compared, message="the outputs are of other shapes")
    worst = max(relative_difference(a, b) for a, b in zip(wanted, got, strict=True))
    message = "" if worst <= IDENTITY else f"the outputs differ by {worst:.3g}"
    return Verdict("program", worst <= IDENTITY, compared, worst, IDENTITY, message)
