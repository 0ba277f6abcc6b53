"""AOTInductor: ``model.aoti.pt2``, machine code for this machine; loads in plain torch.

The package holds a shared library: opening it runs native code, as with any program one installs.
Every package holds its own weights: an artifact for several budgets has them several times.
Its bytes are not reproducible (Inductor puts paths of its cache into them), and it runs only
on processors with the instruction set of the one it was compiled on, or GPUs of its generation.
On a GPU some dialect operators are kernels of ours (``targets/kernels``); ``-plain`` is without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch._inductor import cpp_builder, cpu_vec_isa
from torch._inductor.exc import InvalidCxxCompiler
from torch.export import ExportedProgram

from tokopt.ir.errors import InputError, InternalError, UnsupportedError
from tokopt.ir.tensors import tensor_inputs
from tokopt.ir.torch_writing import writing
from tokopt.ir.trace import fake_mode_of
from tokopt.targets.base import Runner, Target
from tokopt.targets.calling import arguments
from tokopt.targets.examples import example_tensors
from tokopt.targets.parts import FIRST, of_part
from tokopt.targets.placement import on_device
from tokopt.targets.quiet import quiet
from tokopt.targets.signature import signature_of
from tokopt.targets.signature_file import read_signature, write_signature
from tokopt.targets.stored_weights import StoredWeights

PACKAGE = "model.aoti.pt2"

SETTINGS = {
    "cpp.dynamic_threads": True,  # as many threads as the caller's torch has, not the compiler's
    "compile_threads": 1,  # no pool of worker processes to outlive the compilation
    "aot_inductor.precompile_headers": False,  # pays only from the second compilation on
}


@dataclass(frozen=True)
class AotInductor:
    """Compiles for a device with the machine's C++ compiler; takes about half a minute."""

    name: str
    device: str = "cpu"
    native: frozenset[str] = frozenset()
    alike: frozenset[str] = frozenset()
    in_place: bool = False

    @property
    def generation(self) -> str:
        """The one of this machine's GPU, or none."""
        return "" if self.device == "cpu" else _generation()

    def available(self) -> str | None:
        """Look for the device, for Triton, and for the C++ compiler that torch would use."""
        if self.device != "cpu" and not torch.cuda.is_available():
            return "torch finds no CUDA device"
        if self.native and find_spec("triton") is None:
            return "Triton is not installed"
        try:
            cpp_builder.get_cpp_compiler()
        except InvalidCxxCompiler as error:
            return f"no C++ compiler: {error}"
        return None

    def lower(
        self,
        exported: ExportedProgram,
        folder: Path,
        output_names: Sequence[str] | None = None,
        weights: StoredWeights | None = None,
        part: str = FIRST,
    ) -> tuple[str, ...]:
        """Write ``model.aoti.pt2`` and ``signature.json``."""
        reason = self.available()
        if reason is not None:
            raise UnsupportedError(f"the target {self.name} is not available: {reason}")
        signature, package = signature_of(exported, output_names), of_part(PACKAGE, part)
        if self.native:
            from tokopt.targets.kernels.registry import with_kernels  # imports Triton

            exported = with_kernels(exported)
        if self.device != "cpu":
            exported = on_device(exported, self.device)
        with quiet(), writing(folder / package) as file, _with_examples(exported):
            try:
                torch._inductor.aoti_compile_and_package(
                    exported, package_path=file, inductor_configs=dict(SETTINGS)
                )
            except Exception as error:
                raise UnsupportedError(
                    f"AOTInductor does not compile the program: {error}",
                    hint="another target, for example --target onnxruntime-cpu",
                ) from error
        return (package, write_signature(signature, folder, part))

    def choices(self, folder: Path) -> Mapping[str, Mapping[str, str]]:
        """Return for what the machine code is, and whose kernels stand in it."""
        ours = ", ".join(sorted(self.native)) or "none: Inductor's alone"
        machine = self.generation or str(cpu_vec_isa.pick_vec_isa())
        made = {"code_for": machine, "kernels_of_ours": ours}
        if self.device != "cpu":
            made["cuda_graph"] = "no: the package launches kernel by kernel"
        return {file.name: made for file in sorted(folder.glob(of_part(PACKAGE, "*")))}

    def open(self, folder: Path, part: str = FIRST) -> Runner:
        """Load ``model.aoti.pt2``: this runs the native code in it."""
        signature, path = read_signature(folder, part), folder / of_part(PACKAGE, part)
        try:
            with quiet():
                loader = torch._inductor.aoti_load_package(str(path)).loader
        except Exception as error:
            raise InputError(
                f"AOTInductor does not load the package: {error}",
                where=str(path),
                hint="compile it again on this machine",
            ) from error

        def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            flat = [inputs[spec.name].contiguous().to(self.device) for spec in signature.inputs]
            try:
                results = [r for r in loader.boxed_run(flat) if isinstance(r, Tensor)]
            except RuntimeError as error:
                raise InternalError(f"the compiled program failed: {error}") from error
            names = (spec.name for spec in signature.outputs)
            return dict(zip(names, results, strict=True))

        return run


def _generation() -> str:
    """Return this machine's GPU as NVIDIA writes its compute capability."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


@contextmanager
def _with_examples(exported: ExportedProgram) -> Iterator[None]:
    """Lend ``exported`` example inputs (zeros) for as long as Inductor looks at them.

    They lie in a row in memory, as ``open`` gives them, and are recorded so: Inductor builds the
    recorded strides into its code, and those of ``ids[:, :1]`` would read past the end.
    """
    names = {tensor.name for tensor in tensor_inputs(exported)}
    places = [n for n in exported.graph.find_nodes(op="placeholder") if n.name in names]
    before, values = exported._example_inputs, [node.meta["val"] for node in places]
    try:
        exported._example_inputs = arguments(exported, example_tensors(exported))
        for node, value in zip(places, values, strict=True):
            with fake_mode_of(exported.graph):
                node.meta["val"] = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        yield
    finally:
        exported._example_inputs = before
        for node, value in zip(places, values, strict=True):
            node.meta["val"] = value


KERNELS = frozenset({"attention_rows", "cached_attention", "segmented_mean", "select"})
"""The dialect operators ``targets/kernels`` has kernels for, known without importing Triton."""

TARGETS: tuple[Target, ...] = (
    AotInductor("aotinductor"),
    AotInductor("aotinductor-cuda", "cuda", KERNELS),
    AotInductor("aotinductor-cuda-plain", "cuda"),  # what our kernels are compared with
)
