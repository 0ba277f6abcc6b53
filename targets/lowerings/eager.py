"""PyTorch itself: runs the artifact's ``program.pt2`` unchanged; the slow, sure reference.

``eager-cuda`` runs it on a GPU: what compiled programs are measured beside there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.export import ExportedProgram

from tokopt.ir.load import load
from tokopt.targets.base import Runner, Target
from tokopt.targets.calling import runner_of
from tokopt.targets.parts import FIRST
from tokopt.targets.placement import on_device
from tokopt.targets.program_file import PROGRAM, program_of
from tokopt.targets.signature import signature_of
from tokopt.targets.signature_file import read_signature, write_signature
from tokopt.targets.stored_weights import StoredWeights


@dataclass(frozen=True)
class Eager:
    """Needs the program beside it (``program_file.save_program``), as every artifact has it."""

    name: str = "eager"
    device: str = "cpu"
    native: frozenset[str] = frozenset()
    alike: frozenset[str] = frozenset()
    in_place: bool = False
    generation: str | None = None

    def available(self) -> str | None:
        """Look for the device; a CPU is everywhere, and torch is a dependency."""
        if self.device != "cpu" and not torch.cuda.is_available():
            return "torch finds no CUDA device"
        return None

    def lower(
        self,
        exported: ExportedProgram,
        folder: Path,
        output_names: Sequence[str] | None = None,
        weights: StoredWeights | None = None,
        part: str = FIRST,
    ) -> tuple[str, ...]:
        """Write ``signature.json`` only."""
        return (write_signature(signature_of(exported, output_names), folder, part),)

    def choices(self, folder: Path) -> Mapping[str, Mapping[str, str]]:
        """Return nothing: torch decides call by call."""
        return {}

    def open(self, folder: Path, part: str = FIRST) -> Runner:
        """Load ``program.pt2`` with the loader that never runs code from a file.

        Its weights are not read again here: ``runtime.load`` compares the files' hashes.
        """
        names = [spec.name for spec in read_signature(folder, part).outputs]
        exported = program_of(load(folder / PROGRAM, check=False), part)
        if self.device == "cpu":
            return runner_of(exported, names)
        run = runner_of(on_device(exported, self.device), names)
        return lambda inputs: run({name: value.to(self.device) for name, value in inputs.items()})


TARGETS: tuple[Target, ...] = (Eager(), Eager("eager-cuda", "cuda"))
