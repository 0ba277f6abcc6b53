from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tokopt
from tokopt.cli.eval_accuracy import Accuracy, answers
from tokopt.cli.eval_batch import Batch, batch_size
from tokopt.cli.eval_data import find_data
from tokopt.cli.evaluator import read
from tokopt.cli.main import main
from tokopt.ir.errors import InputError
from tokopt.ir.load import load
from tokopt.targets.signature import Signature, TensorSpec

Capture = pytest.CaptureFixture[str]


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def data(built: Path, tmp_path: Path) -> Path:
    """Two files of 5 and 3 pictures; the artifact is right on all but the second and the last."""
    folder = tmp_path / "data"
    folder.mkdir()
    run = tokopt.load(built)
    for name, count, wrong in (("a", 5, 1), ("b", 3, 2)):
        pictures = images(count, count)
        answer = run(images=pictures)["output"].argmax(-1)
        answer[wrong] = (answer[wrong] + 1) % 10
        kind = torch.arange(count) % 2
        tensors = {"images": pictures, "answer": answer, "kind": kind}
        save_file(tensors, folder / f"{name}.safetensors", metadata={"kinds": "cats, dogs"})
    return folder


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),  # R. G. Newcombe, Statistics in Medicine 17 (1998), table I
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(right: int, total: int, low: float, high: float) -> None:
    assert Accuracy(right, total).interval == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("batch", ["1", "3", "100"])
def test_right_answers_are_counted_in_total_and_per_kind_whatever_the_batch(
    built: Path, data: Path, batch: str, capfd: Capture
) -> None:
    assert main(["eval", str(built), "--data", str(data), "--json", "--batch", batch]) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["all"]["artifact"]["right"], said["all"]["samples"]) == (6, 8)
    assert said["all"]["artifact"]["accuracy"] == 0.75 and said["all"]["original"] is None
    counts = {k: (row["artifact"]["right"], row["samples"]) for k, row in said["kinds"].items()}
    assert counts == {"cats": (4, 5), "dogs": (2, 3)}


def test_the_original_stands_beside_the_artifact(
    built: Path, archive: Path, data: Path, capfd: Capture
) -> None:
    line = ["eval", str(built), "--data", str(data), "--against", str(archive)]
    assert main([*line, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)["all"]
    right = same = 0
    for path, count in (("a", 5), ("b", 3)):
        (file,) = find_data(data / f"{path}.safetensors", SIGNATURE)
        (batch,) = file.batches(SIGNATURE, 9, 9)
        with torch.no_grad():
            logits = load(archive).main.module()(images(count, count))
        right += int((logits.argmax(-1) == batch.answers).sum())
        artifact = tokopt.load(built)(batch.inputs)["output"]
        same += int((logits.argmax(-1) == artifact.argmax(-1)).sum())
    assert (said["original"]["right"], said["same_answer"]) == (right, same)
    assert main(line) == 0
    assert f"{same / 8:.1%}" in capfd.readouterr().out


def test_the_limit_takes_the_first_samples_over_all_files(data: Path) -> None:
    files = find_data(data, SIGNATURE)
    counts = [len(batch.answers) for batch in read(files, SIGNATURE, 2, 6)]
    assert counts == [2, 2, 1, 1]


def spec(batch: int | str) -> Signature:
    inputs = (TensorSpec("images", "float32", (batch, 3, 48, 48)),)
    return Signature(inputs, (), {"batch": (1, 64)})


SIGNATURE = spec("batch")


def test_a_fixed_batch_is_filled_up_and_only_real_samples_are_counted(data: Path) -> None:
    (file,) = find_data(data / "a.safetensors", spec(4))
    batches = list(file.batches(spec(4), batch_size(spec(4), 100), 100))
    assert [len(b.inputs["images"]) for b in batches] == [4, 4]
    assert [len(b.answers) for b in batches] == [4, 1]
    found = answers(lambda inputs: {"y": torch.eye(10)[[3, 0, 0, 0]]}, "y", batches)
    wanted = torch.cat([b.answers for b in batches])
    assert found.said.tolist() == [3, 0, 0, 0, 3]
    assert found.accuracy().right == int((found.said == wanted).sum())


def test_the_answer_is_read_off_the_last_row_of_a_sequence() -> None:
    logits = torch.zeros(1, 3, 5)
    logits[0, 0, 1] = logits[0, 2, 4] = 1.0
    batch = Batch({}, torch.tensor([4]), ("all",))
    assert answers(lambda inputs: {"y": logits}, "y", [batch]).accuracy() == Accuracy(1, 1)


def test_a_batch_is_the_nearest_that_the_program_takes() -> None:
    assert [batch_size(SIGNATURE, n) for n in (1, 50, 100)] == [1, 50, 64]
    with pytest.raises(InputError, match="at least 1"):
        batch_size(SIGNATURE, 0)
    with pytest.raises(InputError, match="cannot be told apart"):
        batch_size(Signature((TensorSpec("x", "float32", ()),), (), {}), 1)


Tensors = dict[str, Tensor]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "answer"}, "'answer' is missing"),
        (lambda t: {k: v for k, v in t.items() if k != "images"}, "'images' is missing"),
        (lambda t: {**t, "labels": t["answer"].clone()}, "'labels' is unknown"),
        (lambda t: {**t, "answer": t["answer"].float()}, "'answer' is F32"),
        (lambda t: {**t, "answer": t["answer"][:4]}, "5 samples and 'answer' 4"),
        (lambda t: {k: v[:0] for k, v in t.items()}, "no samples"),
        (lambda t: {**t, "kind": t["kind"] + 1}, "0 to 1: cats, dogs"),
        (lambda t: {**t, "answer": t["answer"] + 10}, "0 to 9"),
        (lambda t: {**t, "images": t["images"] * torch.nan}, "holds NaN"),
        (lambda t: {**t, "images": t["images"][:, :1].contiguous()}, "float32 [batch, 3, 48, 48]"),
        (lambda t: {**t, "images": t["images"].half()}, "float16"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_its_file(
    built: Path, data: Path, capfd: Capture, change: Callable[[Tensors], Tensors], said: str
) -> None:
    tensors = {"images": images(5, 0), "answer": torch.arange(5), "kind": torch.arange(5) % 2}
    path = data / "b.safetensors"
    save_file(change(tensors), path, metadata={"kinds": "cats,dogs"})
    assert main(["eval", str(built), "--data", str(path)]) == 2
    err = capfd.readouterr().err
    assert said in err and str(path) in err


def test_a_place_without_data_is_refused(built: Path, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "text.safetensors").write_text("text")
    (tmp_path / "empty").mkdir()
    for name in ("text.safetensors", "empty", "nowhere"):
        assert main(["eval", str(built), "--data", str(tmp_path / name)]) == 2
        assert str(tmp_path / name) in capfd.readouterr().err


def test_another_archive_than_the_one_compiled_is_refused(
    built: Path, data: Path, archive: Path, tmp_path: Path, capfd: Capture
) -> None:
    other = tmp_path / "other.pt2"
    torch.export.save(torch.export.load(archive), other)
    assert main(["eval", str(built), "--data", str(data), "--against", str(other)]) == 2
    assert "was not made from this archive" in capfd.readouterr().err
