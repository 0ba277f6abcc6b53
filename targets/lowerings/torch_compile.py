"""torch.compile: the artifact's ``program.pt2``, compiled in this process when it first runs.

Inductor tries the kernels it knows for every product and keeps the fastest (``max-autotune``); on a
GPU, programs of constant sizes are captured as CUDA graphs.  What it makes is of this process (and
its cache), not of the artifact: the first run of every process takes as long as a compilation.
Free sizes are constants until a second one is seen.  A GPU runs Inductor's kernels alone: ours
belong to ``aotinductor-cuda``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.errors import InternalError, UnsupportedError
from tokopt.ir.load import load
from tokopt.targets.base import Runner, Target
from tokopt.targets.calling import runner_of
from tokopt.targets.lowerings.aotinductor import AotInductor
from tokopt.targets.parts import FIRST, of_part
from tokopt.targets.placement import on_device
from tokopt.targets.program_file import PROGRAM, program_of
from tokopt.targets.signature import signature_of
from tokopt.targets.signature_file import SIGNATURE, read_signature, write_signature
from tokopt.targets.stored_weights import StoredWeights

MODE = "max-autotune"


@dataclass(frozen=True)
class TorchCompile:
    """Needs the program beside it, as every artifact has it, and what Inductor needs."""

    name: str
    device: str = "cpu"
    native: frozenset[str] = frozenset()
    alike: frozenset[str] = frozenset()
    in_place: bool = False
    generation: str | None = None

    def available(self) -> str | None:
        """Look for what Inductor needs: the device and a C++ compiler."""
        return AotInductor(self.name, self.device).available()

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
        """Return Inductor's mode, and on a GPU whether a run is one CUDA graph."""
        found = {}
        for file in sorted(folder.glob(of_part(SIGNATURE, "*"))):
            found[file.name] = {"mode": MODE}
            if self.device != "cpu":
                signature = read_signature(folder, file.name[len("signature") : -len(".json")])
                free = ", ".join(signature.ranges)
                graph = f"one for each size of {free}" if free else "one, captured by Inductor"
                found[file.name]["cuda_graph"] = graph
        return found

    def open(self, folder: Path, part: str = FIRST) -> Runner:
        """Load ``program.pt2``; it is compiled at the first run, and again at another size."""
        reason = self.available()
        if reason is not None:
            raise UnsupportedError(f"the target {self.name} is not available: {reason}")
        names = [spec.name for spec in read_signature(folder, part).outputs]
        exported = program_of(load(folder / PROGRAM, check=False), part)
        if self.device != "cpu":
            exported = on_device(exported, self.device)
        compiled = runner_of(exported, names, lambda module: torch.compile(module, mode=MODE))

        def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            here = {name: value.to(self.device) for name, value in inputs.items()}
            try:
                # numbers read off an input stay in the graph, as in the program
                with torch._dynamo.config.patch(capture_scalar_outputs=True):
                    outputs = compiled(here)
            except RuntimeError as error:
                raise InternalError(f"the compiled program failed: {error}") from error
            # a CUDA graph writes the next run's outputs where these lie
            return {n: v.clone() if v.is_cuda else v for n, v in outputs.items()}

        return run


TARGETS: tuple[Target, ...] = (
    TorchCompile("torch-compile"),
    TorchCompile("torch-compile-cuda", "cuda"),
)
