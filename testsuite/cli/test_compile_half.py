"""Half precision through every gate: the proof in fp32, the target within the table's tolerance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from testsuite.zoo import handvit
from testsuite.zoo.handvlm import HandVlm, Sizes
from testsuite.zoo.sample import capture
from testsuite.zoo.weights import noise, randomise
from torch.export import ExportedProgram

from tokopt.cli.compiler import compile
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.program import Program
from tokopt.ir.tolerances import IDENTITY, ORACLE, TOLERANCES, coarsest

SIZES = Sizes(tower_layers=2, layers=2)
Build = Callable[[torch.dtype], ExportedProgram]


def vlm(dtype: torch.dtype) -> ExportedProgram:
    visual = torch.full((1, SIZES.visual), SIZES.image_token)
    ids = torch.cat([torch.ones(1, 4).long(), visual, torch.full((1, 5), 3)], 1)
    pixels = noise(1, 3, SIZES.image, SIZES.image, seed=1).to(dtype)
    return capture(randomise(HandVlm(SIZES), 0).to(dtype), (ids, pixels))


def vit(dtype: torch.dtype) -> ExportedProgram:
    images = noise(1, 3, handvit.IMAGE_SIZE, handvit.IMAGE_SIZE, seed=1).to(dtype)
    return capture(randomise(handvit.HandVit(2), 0).to(dtype), (images,))


@pytest.mark.parametrize("build", [vlm, vit])
@pytest.mark.parametrize(
    ("dtype", "target"),
    [
        (torch.float16, "onnxruntime-cpu"),
        (torch.float16, "eager"),
        (torch.bfloat16, "eager"),
    ],
)
def test_half_programs_pass_every_gate_at_the_tables_tolerance(
    build: Build, dtype: torch.dtype, target: str, tmp_path: Path
) -> None:
    exported = build(dtype)
    made = compile(Program.of(exported), tmp_path / "a", budget=0.5, target=target)
    gates = {gate.gate: gate for gate in made.manifest.gates}
    assert made.ok and all(gate.passed for gate in gates.values())
    assert gates["identity"].tolerance == IDENTITY and gates["oracle"].tolerance == ORACLE
    compared = [gate for name, gate in gates.items() if name.startswith("target")]
    tolerances = {gate.tolerance for gate in compared if gate.tolerance is not None}
    assert tolerances == {TOLERANCES[str(dtype).removeprefix("torch.")]}


@pytest.mark.parametrize("build", [vlm, vit])
def test_bfloat16_on_onnx_runtimes_cpu_is_refused_with_what_to_do(
    build: Build, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match="computes in bfloat16") as refused:
        compile(
            Program.of(build(torch.bfloat16)),
            tmp_path / "a",
            budget=0.5,
            target="onnxruntime-cpu",
        )
    assert "model.to(torch.float16)" in str(refused.value.hint)
    assert not (tmp_path / "a").exists()


def test_a_half_program_that_ends_in_fp32_has_the_tolerance_of_half() -> None:
    class Ends(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.half() * 3).float()

    exported = torch.export.export(Ends(), (torch.ones(2),))
    assert coarsest(exported) == TOLERANCES["float16"]
    plain = torch.export.export(torch.nn.ReLU(), (torch.ones(2),))
    assert coarsest(plain) == TOLERANCES["float32"]
