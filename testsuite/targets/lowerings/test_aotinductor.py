from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler
from torch.export import ExportedProgram

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.targets.calling import runner_of
from tokopt.targets.compare import compare
from tokopt.targets.launched import launched
from tokopt.targets.lowerings import aotinductor
from tokopt.targets.registry import find
from tokopt.targets.signature import signature_of
from tokopt.targets.signature_file import write_signature

pytestmark = pytest.mark.slow

TARGET = find("aotinductor")
REASON = TARGET.available()


@pytest.mark.needs_cxx
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_a_compiled_program_equals_torch_also_without_tokopt_and_without_example_inputs(
    small: ExportedProgram, tmp_path: Path
) -> None:
    """One compilation: it is slow."""
    example, small._example_inputs = small._example_inputs, None
    try:
        files = TARGET.lower(small, tmp_path, ["logits", "trace.kept"])
        assert small._example_inputs is None
    finally:
        small._example_inputs = example
    assert files == ("model.aoti.pt2", "signature.json")
    found = launched(tmp_path / files[0])
    assert found.kernels and any(name.startswith("addmm") for name in found.library)
    chosen = TARGET.choices(tmp_path)[files[0]]
    assert chosen["kernels_of_ours"].startswith("none") and chosen["code_for"]
    run, reference = TARGET.open(tmp_path), runner_of(small, ["logits", "trace.kept"])
    for batch in (1, 5):
        inputs = {"x": torch.randn(4, batch).T, "mask": torch.arange(batch) > 1}
        assert compare(reference(inputs), run(inputs)) == []
    code = (
        "import sys, torch\n"
        "model = torch._inductor.aoti_load_package(sys.argv[1])\n"
        "out = model(x=torch.ones(2, 4), mask=torch.ones(2, dtype=torch.bool))\n"
        "assert out[0].shape == (2, 3) and not [m for m in sys.modules if 'tokopt' in m]\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code, tmp_path / files[0]], check=True)


def test_without_a_compiler_the_target_says_so(
    small: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise InvalidCxxCompiler("g++")

    monkeypatch.setattr(aotinductor.cpp_builder, "get_cpp_compiler", missing)
    reason = TARGET.available()
    assert reason is not None and "no C++ compiler" in reason
    with pytest.raises(UnsupportedError, match="no C\\+\\+ compiler"):
        TARGET.lower(small, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_package_is_an_input_error(small: ExportedProgram, tmp_path: Path) -> None:
    write_signature(signature_of(small), tmp_path)
    (tmp_path / "model.aoti.pt2").write_bytes(b"PK not a package")
    with pytest.raises(InputError, match="does not load"):
        TARGET.open(tmp_path)
