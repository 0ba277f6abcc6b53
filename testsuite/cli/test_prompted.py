"""Pictures and prompts become inputs through a processor, or are refused by file and line.  3 s."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tokopt.cli.asked import Wanted
from tokopt.cli.calibration import calibration
from tokopt.cli.processor import processor_named
from tokopt.cli.prompted import prompted
from tokopt.ir.errors import InputError
from tokopt.targets.signature import Signature, TensorSpec

SIGNATURE = Signature(
    (
        TensorSpec("pixel_values", "float32", ("b", 3, 8, 8)),
        TensorSpec("input_ids", "int64", ("b", "s")),
    ),
    (),
    {"b": (1, None), "s": (2, 64)},
)
PICTURES = Signature(SIGNATURE.inputs[:1], (), {"b": (1, None)})


def letters(images: list[Any], text: str, return_tensors: str) -> dict[str, Tensor]:
    """A processor: bytes of the prompt, pixels of the pictures, and a mask that nobody takes."""
    pixels = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images]).float()
    ids = torch.tensor([list(text.encode())])
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (8, 8), (number, 20, 30)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, *lines: object) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "prompts.jsonl").write_text(text)


def test_neighbours_of_one_length_run_together_in_their_order(folder: Path) -> None:
    lines = [("a.png", "one"), ("b.png", "two"), ("a.png", "three"), ("b.png", "six")]
    write(folder, *({"image": image, "prompt": prompt} for image, prompt in lines))
    found = prompted(folder, letters, SIGNATURE, 2, 4)
    assert [[bytes(row.tolist()) for row in inputs["input_ids"]] for inputs, _ in found] == [
        [b"one", b"two"],
        [b"three"],
        [b"six"],
    ]
    assert found[0][0]["pixel_values"][:, 0, 0, 0].tolist() == [0.0, 1.0]
    assert list(found[0][0]) == ["pixel_values", "input_ids"], "the mask is left aside"
    assert len(prompted(folder, letters, SIGNATURE, 1, 3)) == 3


def test_a_prompt_ends_in_its_answer_and_tells_how_many_tokens_that_is(folder: Path) -> None:
    lines = [("one", "yes"), ("three", "a"), ("two", None)]
    write(
        folder,
        *(
            {"image": "a.png", "prompt": prompt, **({"answer": answer} if answer else {})}
            for prompt, answer in lines
        ),
    )
    found = [inputs for inputs, _ in prompted(folder, letters, SIGNATURE, 2, 4)]
    told = [(bytes(i["input_ids"][0].tolist()), i.get("answered")) for i in found]
    assert [(ids, n.tolist()) for ids, n in told[:1] if n is not None] == [(b"oneyes", [3, 1])]
    assert bytes(found[0]["input_ids"][1].tolist()) == b"threea" and told[-1] == (b"two", None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ({"prompt": "what?"}, "no image"),
        ({"image": "a.png", "prompt": 3}, "no text"),
        ({"image": "c.png", "prompt": "what?"}, "cannot be read"),
        ({"image": ["a.png"], "prompt": "x"}, "input_ids"),
        ({"image": []}, "does not take"),
    ],
)
def test_a_bad_sample_is_named_by_its_line(folder: Path, line: object, message: str) -> None:
    write(folder, {"image": "a.png", "prompt": "what?"}, line)
    with pytest.raises(InputError) as raised:
        prompted(folder, letters, SIGNATURE, 2, 9)
    assert message in str(raised.value) and "line 2" in str(raised.value.where)


def test_a_folder_without_lines_is_empty(folder: Path) -> None:
    write(folder)
    with pytest.raises(InputError, match="no samples"):
        prompted(folder, letters, SIGNATURE, 2, 9)


def test_numbers_that_are_none_are_refused(folder: Path) -> None:
    def broken(**given: Any) -> dict[str, Tensor]:
        made = letters(**given)
        return {**made, "pixel_values": made["pixel_values"] * torch.nan}

    write(folder, {"image": "a.png", "prompt": "what?"})
    with pytest.raises(InputError, match="NaN"):
        prompted(folder, broken, SIGNATURE, 2, 9)


def test_a_processor_of_transformers_is_read_from_its_folder(folder: Path) -> None:
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"height": 8, "width": 8},
        "do_center_crop": False,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    write(folder, {"image": "a.png"}, {"image": "b.png"})
    ((inputs, _),) = prompted(folder, processor_named(str(folder)), PICTURES, 32, 9)
    wanted = (torch.tensor([[0.0, 20, 30], [1, 20, 30]]) / 255 - 0.5) / 0.5
    assert torch.allclose(inputs["pixel_values"].mean((2, 3)), wanted, atol=1e-6)
    with pytest.raises(InputError, match="processor cannot be loaded"):
        processor_named(str(folder / "nowhere"))


def test_pictures_want_a_processor_and_nothing_else_does(folder: Path) -> None:
    class Image2(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    exported = torch.export.export(Image2(), (torch.zeros(1, 3),))
    with pytest.raises(InputError, match="for a folder of pictures"):
        calibration(exported, folder, (), "name")
    write(folder, {"image": "a.png"})
    with pytest.raises(InputError, match="made inputs by a processor"):
        calibration(exported, folder, ())
    with pytest.raises(InputError, match="without --calibration"):
        Wanted(processor="name")
