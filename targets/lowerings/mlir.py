"""MLIR: ``model.mlir`` in one dialect, its weights arguments of ``main``; any MLIR tool reads it.

``model.arguments.json`` says what each argument is.  Running it (the gates do) compiles it with
IREE for this machine's CPU whenever it is opened, which takes seconds to minutes; nothing in the
folder is bound to IREE or to this machine.  Wants the optional extra ``tokopt[mlir]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.targets.base import Runner, Target
from tokopt.targets.mlir.weights import read_arguments, write_arguments
from tokopt.targets.parts import FIRST, of_part
from tokopt.targets.quiet import quiet
from tokopt.targets.signature import signature_of
from tokopt.targets.signature_file import read_signature, write_signature
from tokopt.targets.stored_weights import StoredWeights

MODEL = "model.mlir"
INSTALL = "pip install 'tokopt[mlir]'"
NEEDED = {
    "torch_mlir": "torch-mlir",
    "iree.compiler": "iree-base-compiler",
    "iree.runtime": "iree-base-runtime",
}


@dataclass(frozen=True)
class Mlir:
    """One dialect by torch-mlir; ``input_type`` is what IREE calls it."""

    name: str
    dialect: str
    input_type: str
    native: frozenset[str] = frozenset()
    alike: frozenset[str] = frozenset()
    in_place: bool = False
    generation: str | None = None

    def available(self) -> str | None:
        """Look for torch-mlir, which imports, and IREE, which the gates run."""
        missing = [package for module, package in NEEDED.items() if not _is_there(module)]
        if missing:
            return f"not installed: {', '.join(missing)} ({INSTALL})"
        return None

    def lower(
        self,
        exported: ExportedProgram,
        folder: Path,
        output_names: Sequence[str] | None = None,
        weights: StoredWeights | None = None,
        part: str = FIRST,
    ) -> tuple[str, ...]:
        """Write ``model.mlir``, ``model.arguments.json`` and ``signature.json``."""
        reason = self.available()
        if reason is not None:
            raise UnsupportedError(f"the target {self.name} is not available: {reason}")
        from tokopt.targets.mlir.importing import imported

        signature = signature_of(exported, output_names)
        _refuse_bfloat16(exported)
        done, model = imported(exported, self.dialect), of_part(MODEL, part)
        (folder / model).write_text(done.text, encoding="utf-8")
        written = write_arguments(self.dialect, done.arguments, folder, weights, part)
        return (model, *written, write_signature(signature, folder, part))

    def choices(self, folder: Path) -> Mapping[str, Mapping[str, str]]:
        """Return nothing: what is written is of no device."""
        return {}

    def open(self, folder: Path, part: str = FIRST) -> Runner:
        """Compile ``model.mlir`` with IREE and map its weights."""
        reason = self.available()
        if reason is not None:
            raise UnsupportedError(f"the target {self.name} is not available: {reason}")
        from tokopt.targets.mlir.iree import compiled

        signature, path = read_signature(folder, part), folder / of_part(MODEL, part)
        _, arguments = read_arguments(folder, part)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the MLIR: {error}", where=str(path)) from error
        with quiet():
            main = compiled(text, self.input_type)

        def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            found = main([inputs[a] if isinstance(a, str) else a for a in arguments])
            wanted = zip(signature.outputs, found, strict=True)
            return {spec.name: value.to(getattr(torch, spec.dtype)) for spec, value in wanted}

        return run


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def _refuse_bfloat16(exported: ExportedProgram) -> None:
    """Refuse what cannot be run here: weights and inputs pass through numpy, which has none."""
    for node in exported.graph.nodes:
        if getattr(node.meta.get("val"), "dtype", None) is torch.bfloat16:
            raise UnsupportedError(
                "the program computes in bfloat16, which this target cannot check",
                where=node.name,
                expected="float32 or float16",
                hint="export the model in float16, or take --target aotinductor",
            )


TARGETS: tuple[Target, ...] = (
    Mlir("mlir", "linalg-on-tensors", "none"),
    Mlir("mlir-stablehlo", "stablehlo", "stablehlo"),
    Mlir("mlir-tosa", "tosa", "tosa"),
)
