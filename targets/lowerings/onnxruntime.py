"""ONNX Runtime: ``model.onnx`` with standard operators only; loads without tokopt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.errors import InputError, InternalError, UnsupportedError
from tokopt.ir.tensors import tensor_inputs, tensor_outputs
from tokopt.targets.base import Runner, Target
from tokopt.targets.onnx.bound import bound_runner
from tokopt.targets.onnx.captured import ASKED, barrier, captured_runner
from tokopt.targets.onnx.counted import read_in_place
from tokopt.targets.onnx.executed import executed
from tokopt.targets.onnx.fusions import Region, fusions
from tokopt.targets.onnx.grouped_query import native
from tokopt.targets.onnx.model import onnx_model
from tokopt.targets.onnx.saving import MODEL, save
from tokopt.targets.parts import FIRST, of_part
from tokopt.targets.quiet import quiet
from tokopt.targets.signature import signature_of
from tokopt.targets.stored_weights import StoredWeights

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
QUIET = 4
"""ONNX Runtime's severity "fatal": its errors are raised, so they need not be printed too."""


SILENT = 4
"""Severity "fatal": that a CUDA library is missing is this module's to say."""


@dataclass(frozen=True)
class Runs:
    """What runs of a model: its ``regions``, and by provider how many of each operator."""

    regions: list[Region]
    placed: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime with one execution provider (and its CPU one for what that cannot run).

    Uses as many threads as torch (``torch.set_num_threads``, ``OMP_NUM_THREADS``) when opened.
    """

    name: str
    provider: str
    native: frozenset[str] = frozenset()
    alike: frozenset[str] = frozenset()
    in_place: bool = False
    generation: str | None = None

    def available(self) -> str | None:
        """Start a session on the provider: that a wheel lists it does not mean it works."""
        if self.provider not in onnxruntime.get_available_providers():
            return f"the installed onnxruntime has no {self.provider}"
        return _trial(self.provider)

    def lower(
        self,
        exported: ExportedProgram,
        folder: Path,
        output_names: Sequence[str] | None = None,
        weights: StoredWeights | None = None,
        part: str = FIRST,
    ) -> tuple[str, ...]:
        """Write ``model.onnx``; above 64 MiB its weights are outside of it.

        They are where ``weights`` says they lie already, else in ``model.onnx.data``.
        """
        _refuse_bfloat16(exported, self.provider)
        _refuse_float8(exported)
        model = onnx_model(exported, signature_of(exported, output_names), self.in_place)
        return save(model, folder, weights, part)

    def choices(self, folder: Path) -> Mapping[str, Mapping[str, str]]:
        """Return the provider, how many caches grow in place, and on a GPU of a CUDA graph.

        That is whether a run is one, and if not, why.
        """
        found = {}
        for path in sorted(folder.glob(of_part(MODEL, "*"))):
            found[path.name] = {"provider": self.provider}
            model = onnx.load(path, load_external_data=False)
            grown = read_in_place({one.key: one.value for one in model.metadata_props})
            if grown:
                found[path.name]["caches"] = f"{len(grown)} grow in place"
            if self.provider == CUDA:
                refusal = self._opened(path)[1]
                graph = "captured at the first run" if refusal is None else f"no: {refusal}"
                found[path.name]["cuda_graph"] = graph
        return found

    def _opened(self, path: Path) -> tuple[Runner, str | None]:
        """Start a session; on a GPU also say why its runs are no CUDA graph, where they are not."""
        device = torch.device("cuda" if self.provider == CUDA else "cpu")
        refusal = barrier(path) if self.provider == CUDA else "not on a GPU"
        if refusal is None:
            try:
                return captured_runner(_session(str(path), self.provider, ASKED), device), None
            except Exception as error:  # ONNX Runtime's exceptions share no public base class
                refusal = f"ONNX Runtime refuses: {error}"
        return bound_runner(_session(str(path), self.provider), device), refusal

    def open(self, folder: Path, part: str = FIRST) -> Runner:
        """Start a session on ``model.onnx``."""
        path = folder / of_part(MODEL, part)
        try:
            bound, _ = self._opened(path)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise InputError(
                f"ONNX Runtime does not load the model: {error}",
                where=str(path),
                hint="the file may be damaged or need a newer onnxruntime",
            ) from error

        def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            try:
                return bound(inputs)
            except Exception as error:  # as above
                raise InternalError(
                    f"ONNX Runtime failed while running the model: {error}", where=str(path)
                ) from error

        return run

    def runs(self, path: Path) -> Runs:
        """Return what is one operator and what is written out in the graph that runs, and where.

        ``path`` is a model that ``lower`` wrote.  ``UnsupportedError`` where the provider does not
        start here: what it would run is not known then.
        """
        missing = self.available()
        if missing is not None:
            raise UnsupportedError(missing, where=self.name)
        with executed(path, list(dict.fromkeys([self.provider, CPU]))) as found:
            return Runs(fusions(found.graph), found.placed)


def _session(
    model: str | bytes, provider: str, asked: Mapping[str, str] | None = None
) -> onnxruntime.InferenceSession:
    """Start a session on a provider, of which options may be ``asked`` for."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = torch.get_num_threads()
    providers = list(dict.fromkeys([provider, CPU]))
    settings = [dict(asked or {}) if one == provider else {} for one in providers]
    return onnxruntime.InferenceSession(
        model, options, providers=providers, provider_options=settings
    )


def _refuse_bfloat16(exported: ExportedProgram, provider: str) -> None:
    """Refuse what does not run: the CPU has no kernels, and numpy no such type to give or take."""
    graph = exported.graph
    ends = [*tensor_inputs(exported), *tensor_outputs(exported)]
    outside = next((end.name for end in ends if end.value.dtype is torch.bfloat16), None)
    values = ((n.name, getattr(n.meta.get("val"), "dtype", None)) for n in graph.nodes)
    inside = next((name for name, dtype in values if dtype is torch.bfloat16), None)
    name = outside or (inside if provider == CPU else None)
    if name is not None:
        raise UnsupportedError(
            f"the program computes in bfloat16, which ONNX Runtime's {provider} cannot"
            + (" give or take" if provider != CPU else ""),
            where=name,
            expected="float32 or float16",
            hint="export the model in float16 (model.to(torch.float16)) or take another target, "
            "for example --target aotinductor",
        )


def _refuse_float8(exported: ExportedProgram) -> None:
    """Refuse to concatenate what ONNX has a type of, and no such operator: caches that grow."""
    for node in exported.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default):
        dtype = node.meta["val"].dtype
        if str(dtype).startswith("torch.float8"):
            raise UnsupportedError(
                f"the program computes with {dtype}, of which ONNX puts no two behind one another",
                where=node.name,
                hint="store the cache in int8 (--kv-bits 8), or take --target aotinductor",
            )


@cache
def _trial(provider: str) -> str | None:
    """Run one addition on ``provider``; say what is wrong where it does not start."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    total = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", [value], [total])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnxruntime.set_default_logger_severity(SILENT)  # it writes to the terminal from C++
    try:
        with quiet():
            if provider == CUDA:
                onnxruntime.preload_dlls()  # finds the libraries of torch's own wheels
            session = _session(model.SerializeToString(), provider)
    except Exception as error:  # as above
        return f"{provider} does not start: {error}"
    finally:
        onnxruntime.set_default_logger_severity(QUIET)
    if session.get_providers()[0] != provider:
        return f"{provider} does not start (a driver or library is missing)"
    return None


TARGETS: tuple[Target, ...] = (
    OnnxRuntime("onnxruntime-cpu", CPU, native(), alike=native(), in_place=bool(native())),
    OnnxRuntime("onnxruntime-cuda", CUDA),
)
