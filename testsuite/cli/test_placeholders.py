"""The number of image placeholders is checked wherever a user gives inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from testsuite.zoo import llava
from torch import Tensor

import tokopt
from tokopt.cli.main import main
from tokopt.ir.errors import InputError

SAID = f"item 1 has {llava.VISUAL - 1} image placeholders, the program expects {llava.VISUAL}"


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archives") / "llava.pt2"
    torch.export.save(llava.build(2).exported, path)
    return path


@pytest.fixture(scope="module")
def artifact(vlm: Path) -> Path:
    folder = vlm.with_name("built")
    line = ["compile", str(vlm), "--budget", "0.5", "--method", "stride", "--target", "eager"]
    assert main([*line, "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def wrong() -> dict[str, Tensor]:
    """One placeholder of the second item is text: what is left over would go to no one."""
    pixels, ids = llava.inputs(2, llava.VISUAL + 9, seed=5)
    place = int((ids[1] == llava.IMAGE_TOKEN).nonzero()[0])
    ids[1, place] = 3
    return {"pixel_values": pixels, "input_ids": ids}


def test_run_verify_and_compile_name_the_item_and_the_file(
    vlm: Path,
    artifact: Path,
    wrong: dict[str, Tensor],
    tmp_path: Path,
    written: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = written(**wrong)
    build = ["compile", str(vlm), "--budget", "0.5", "--target", "eager", "-o", str(tmp_path / "x")]
    for line in (["run", str(artifact)], ["verify", str(artifact)], build):
        assert main([*line, "--inputs", file]) == 2
        err = capfd.readouterr().err
        assert SAID in err and f"{file}: input 'input_ids'" in err
    assert not (tmp_path / "x").exists()


def test_a_loaded_artifact_refuses_them_and_takes_what_fits(
    artifact: Path, wrong: dict[str, Tensor]
) -> None:
    model = tokopt.load(artifact)
    with pytest.raises(InputError, match=SAID):
        model(wrong)
    pixels, ids = llava.inputs(2, llava.VISUAL + 9, seed=6)
    assert model(pixel_values=pixels, input_ids=ids)["output"].shape[:2] == ids.shape


def test_an_artifact_of_schema_1_loads_and_checks_nothing(
    artifact: Path,
) -> None:
    path = artifact / "manifest.json"
    before = path.read_text()
    data = json.loads(before)
    assert data.pop("placeholders") == [
        {"input": "input_ids", "value": llava.IMAGE_TOKEN, "count": llava.VISUAL, "mask": None}
    ]
    assert [data.pop(later) for later in ("variants", "programs", "links")] == [[], [], []]
    assert data.pop("padding") is None
    for later in ("flops_saved", "selector"):
        data["budget"].pop(later)
    try:
        path.write_text(json.dumps(data | {"schema_version": 1}))
        assert tokopt.load(artifact).manifest.placeholders == ()
    finally:
        path.write_text(before)
