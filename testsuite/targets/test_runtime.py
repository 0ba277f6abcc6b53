from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tokopt.ir.errors import GateError, InputError, UnsupportedError
from tokopt.targets.manifest import SCHEMA_VERSION
from tokopt.targets.registry import find
from tokopt.targets.runtime import load

X = torch.tensor([[1.0, 5.0, 2.0, 4.0]])
MASK = torch.ones(1, dtype=torch.bool)


def test_an_artifact_runs_on_a_mapping_on_keywords_and_on_numpy(lowered: Path) -> None:
    run = load(lowered)
    one = run({"x": X, "mask": MASK})
    two = run(x=X.numpy(), mask=np.ones(1, dtype=bool))
    assert list(one) == ["logits"] and torch.equal(one["logits"], two["logits"])
    assert one["logits"].shape == (1, 3)


def test_the_selection_trace_is_returned_only_when_asked_for(lowered: Path) -> None:
    outputs = load(lowered)({"x": X, "mask": MASK}, trace=True)
    assert list(outputs) == ["logits", "trace.kept"]
    assert outputs["trace.kept"].tolist() == [[1, 3]]


def test_an_artifact_of_another_machine_runs_on_a_target_that_reads_the_same_files(
    edited: Callable[[str, str], Path],
) -> None:
    folder = edited('"onnxruntime-cpu",', '"onnxruntime-cuda",')
    if find("onnxruntime-cuda").available() is not None:
        with pytest.raises(UnsupportedError, match="CUDAExecutionProvider"):
            load(folder)
    assert load(folder, target="onnxruntime-cpu")(x=X, mask=MASK)


def test_inputs_that_do_not_fit_are_input_errors(lowered: Path) -> None:
    run = load(lowered)
    with pytest.raises(InputError, match="'mask' is missing"):
        run(x=X)
    with pytest.raises(InputError, match="unknown input 'y'"):
        run(x=X, mask=MASK, y=X)


@pytest.mark.parametrize("name", ["model.onnx", "program.pt2", "plan.toml", "log.txt"])
def test_a_changed_or_missing_file_is_named(artifact: Path, name: str) -> None:
    data = bytearray((artifact / name).read_bytes())
    data[len(data) // 2] ^= 1
    (artifact / name).write_bytes(data)
    with pytest.raises(InputError, match="has changed") as caught:
        load(artifact)
    assert caught.value.where == str(artifact / name)
    (artifact / name).unlink()
    with pytest.raises(InputError, match="cannot be read") as caught:
        load(artifact)
    assert caught.value.where == str(artifact / name)


def test_the_check_of_files_can_be_skipped(artifact: Path) -> None:
    (artifact / "log.txt").write_text("other")
    assert load(artifact, verify=False)(x=X, mask=MASK)


def test_an_artifact_that_failed_a_gate_is_opened_only_on_demand(
    edited: Callable[[str, str], Path],
) -> None:
    edited('"passed": true', '"passed": false')
    folder = edited('"status": "ok"', '"status": "failed"')
    with pytest.raises(GateError, match="failed verification: target"):
        load(folder)
    assert load(folder, allow_failed=True)(x=X, mask=MASK)


def test_a_newer_schema_a_damaged_manifest_and_no_artifact_are_told_apart(
    tmp_path: Path, edited: Callable[[str, str], Path]
) -> None:
    with pytest.raises(InputError, match="not a tokopt artifact"):
        load(tmp_path)
    folder = edited(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99')
    with pytest.raises(InputError, match="schema version 99"):
        load(folder)
    (folder / "manifest.json").write_text('{"format": "tokopt artifact", ')
    with pytest.raises(InputError, match="not valid JSON"):
        load(folder)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="not of a tokopt artifact"):
        load(folder)


def test_a_manifest_that_names_files_elsewhere_is_refused(
    edited: Callable[[str, str], Path],
) -> None:
    with pytest.raises(InputError, match="outside the folder"):
        load(edited('"plan.toml"', '"../plan.toml"'))
