"""Run an artifact: ``load(folder)`` gives a function from named inputs to named outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tokopt.ir.errors import GateError, UnsupportedError
from tokopt.targets.base import Runner
from tokopt.targets.hashing import check_files
from tokopt.targets.input_check import checked_inputs
from tokopt.targets.manifest import OK, Manifest, read_manifest
from tokopt.targets.placeholder_check import check_placeholders
from tokopt.targets.registry import find

TRACE = "trace."
"""Outputs whose names start so are the selection trace: kept indices and scores per stage."""


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact; call it with inputs by name."""

    folder: Path
    manifest: Manifest
    runner: Runner

    def __call__(
        self, inputs: Mapping[str, object] | None = None, /, *, trace: bool = False, **named: object
    ) -> dict[str, Tensor]:
        """Run on ``inputs`` (a mapping) or on keyword arguments; tensors or numpy arrays.

        Returns the outputs by name, on the CPU; those of the selection trace only with
        ``trace=True``.  ``InputError`` says which input does not fit, or
        which item has another number of image placeholders than the program has visual rows.
        """
        given = {**(inputs or {}), **named}
        inputs = checked_inputs(given, self.manifest.signature)
        check_placeholders(inputs, self.manifest.placeholders)
        outputs = self.runner(inputs)
        return {n: value for n, value in outputs.items() if trace or not n.startswith(TRACE)}


def load(
    folder: str | Path,
    *,
    target: str | None = None,
    verify: bool = True,
    allow_failed: bool = False,
) -> Artifact:
    """Open the artifact in ``folder``.

    ``target`` runs it on another target that reads the same files (an ``onnxruntime-cuda``
    artifact on ``onnxruntime-cpu``).  ``verify=False`` skips hashing the files.

    Raises ``InputError`` for a folder that is no artifact, is damaged or of a newer tokopt,
    ``GateError`` for an artifact that failed verification unless ``allow_failed``, and
    ``UnsupportedError`` where its target is not available here.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest.status != OK and not allow_failed:
        failed = [gate.gate for gate in manifest.gates if not gate.passed]
        raise GateError(
            "this artifact failed verification: " + (", ".join(failed) or manifest.status),
            where=str(folder),
            hint="compile it again; allow_failed=True opens it for debugging",
        )
    if verify:
        check_files(folder, {**manifest.files, **manifest.run.files})
    chosen = find(target or manifest.target)
    reason = chosen.available()
    if reason is not None:
        raise UnsupportedError(
            f"the artifact's target {chosen.name} is not available here: {reason}",
            where=str(folder),
            hint="an ONNX Runtime artifact also runs with target='onnxruntime-cpu'",
        )
    return Artifact(folder, manifest, chosen.open(folder))
