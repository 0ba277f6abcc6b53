from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from torch.export import ExportedProgram

from tokopt.ir.program import Program
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.decompose import decompose
from tokopt.passes.default_plan import default_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.workspace import Workspace
from tokopt.targets.calling import runner_of
from tokopt.targets.compare import compare
from tokopt.targets.program_file import save_program
from tokopt.targets.registry import find
from tokopt.targets.signature import signature_of


def test_what_the_compiler_prunes_runs_on_every_target_as_in_torch(
    normal: Callable[[str], ExportedProgram], tmp_path: Path
) -> None:
    original = normal("dinov2")
    plan = default_plan(Workspace.of(original).facts, 0.5)
    exported = decompose(apply_plan(original, plan, find_method).exported)
    save_program(Program.of(exported), tmp_path)
    reference = runner_of(exported)
    name = signature_of(exported).inputs[0].name
    inputs = {name: torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(5))}
    for target in (find("onnxruntime-cpu"), find("eager")):
        target.lower(exported, tmp_path)
        assert compare(reference(inputs), target.open(tmp_path)(inputs)) == [], target.name
    graph = onnx.load(tmp_path / "model.onnx").graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    keys = [shapes[node.input[1]][2] for node in graph.node if node.op_type == "Attention"]
    # 36 patches, the class token and 4 registers; the plan's keep counts after its layers
    assert keys == [41, 33, 9, 9] and [stage.keep for stage in plan.stages] == [28, 4]
