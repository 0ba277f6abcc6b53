from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import tokopt
from tokopt.cli.main import main
from tokopt.cli.target_gate import against_target
from tokopt.cli.verifier import verify
from tokopt.cli.verify import plain
from tokopt.ir.errors import InputError
from tokopt.ir.load import load
from tokopt.passes.validate import Verdict
from tokopt.targets.hashing import sha256_of
from tokopt.targets.manifest import read_manifest
from tokopt.targets.registry import find

Written = Callable[..., str]
Capture = pytest.CaptureFixture[str]


def test_with_the_original_every_gate_is_repeated(
    archive: Path, built: Path, capfd: Capture
) -> None:
    assert main(["verify", str(built), "--against", str(archive), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["passed"] is True
    names = [gate["gate"] for gate in said["gates"]]
    assert names == ["files", "structure", "identity", "selection", "oracle", "program", "target"]


def test_with_inputs_alone_the_files_and_the_target_are_checked(
    built: Path, written: Written, pictures: Tensor, capfd: Capture
) -> None:
    assert main(["verify", str(built), "--inputs", written(images=pictures)]) == 0
    out = capfd.readouterr().out
    assert "files" in out and "target" in out and "oracle" not in out and "FAILED" not in out


def test_without_inputs_and_original_it_says_what_is_needed(built: Path, capfd: Capture) -> None:
    assert main(["verify", str(built)]) == 2
    assert "images: float32 [batch, 3, 48, 48], or --against" in capfd.readouterr().err


def test_a_changed_file_fails_the_first_gate_and_nothing_of_it_is_opened(
    artifact: Path, pictures: Tensor, capfd: Capture
) -> None:
    (artifact / "program.pt2").write_bytes(b"something else")
    assert main(["verify", str(artifact), "--inputs", "never read"]) == 1
    said = capfd.readouterr()
    assert "FAILED" in said.out and "program.pt2" in said.err and "has changed" in said.err
    assert [gate.gate for gate in verify(artifact, inputs={"images": pictures})] == ["files"]


def test_another_archive_than_the_one_compiled_is_refused(
    built: Path, tmp_path: Path, archive: Path, capfd: Capture
) -> None:
    other = tmp_path / "other.pt2"
    torch.export.save(torch.export.load(archive), other)
    assert main(["verify", str(built), "--against", str(other)]) == 2
    assert "was not made from this archive" in capfd.readouterr().err


def test_the_wrong_program_under_the_right_hash_is_found_with_the_original(
    archive: Path, artifact: Path, tmp_path: Path, pictures: Tensor
) -> None:
    options: dict[str, Any] = {"budget": 0.5, "method": "random", "target": "eager"}
    other = tokopt.compile(archive, tmp_path / "other", **options).folder / "program.pt2"
    mine, manifest = artifact / "program.pt2", artifact / "manifest.json"
    text = manifest.read_text().replace(sha256_of(mine), sha256_of(other))
    mine.write_bytes(other.read_bytes())
    manifest.write_text(text)
    inputs = {"images": pictures}
    assert all(gate.passed for gate in verify(artifact, inputs=inputs))
    gates = verify(artifact, inputs=inputs, against=archive)
    assert [gate.gate for gate in gates if not gate.passed] == ["program"]


def test_a_failed_artifact_is_verified_again_all_the_same(failed: Path, pictures: Tensor) -> None:
    gates = verify(failed, inputs={"images": pictures})
    assert [(gate.gate, gate.passed) for gate in gates] == [("files", True), ("target", True)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda o: {**o, "output": o["output"] + 0.1}, "the outputs differ by"),
        (lambda o: {**o, "trace.0.kept": o["trace.0.kept"].flip(1)}, "other rows are kept"),
        (lambda o: {**o, "output": o["output"][:, 1:]}, "'output' is missing or of another shape"),
        (lambda o: {"output": o["output"]}, "'trace.0.kept' is missing"),
    ],
)
def test_a_target_that_computes_something_else_fails_its_gate(
    built: Path,
    pictures: Tensor,
    change: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    said: str,
) -> None:
    eager = find("eager")
    wrong: Any = SimpleNamespace(
        name="wrong", open=lambda *where: lambda inputs: change(eager.open(*where)(inputs))
    )
    names = [spec.name for spec in read_manifest(built).signature.outputs]
    program, inputs = load(built / "program.pt2").main, {"images": pictures}
    (verdict,) = against_target(wrong, built, None, program, inputs, names)
    assert not verdict.passed and said in verdict.message
    (verdict,) = against_target(eager, built, None, program, inputs, names)
    assert verdict.passed


def test_a_folder_that_is_no_artifact_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a tokopt artifact"):
        verify(tmp_path, inputs={})


def test_a_difference_that_is_no_number_is_null_in_json() -> None:
    assert plain(Verdict("target", False, "", float("nan")))["max_difference"] is None
    assert plain(Verdict("target", True, "", 0.5))["max_difference"] == 0.5
