"""Archives of several programs as `inspect` shows them: with their links, and as one model."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from testsuite.zoo.handvlm import Sizes
from testsuite.zoo.handvlm_parts import parts

from tokopt.cli.main import main
from tokopt.ir.load import load
from tokopt.ir.program import Program
from tokopt.ir.save import save

LINKS = (
    "vision.output → prefill.features",
    "prefill.output_1 → decode.cache_0, prefill.output_2 → decode.cache_1, … 4 in all",
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("several") / "parts.pt2"
    save(Program(parts(Sizes(layers=2))), path)
    return path


def test_the_weights_of_three_programs_are_in_the_file_and_in_memory_once(archive: Path) -> None:
    vision, prefill, decode = (graph.state_dict for graph in load(archive).graphs.values())
    once = sum(tensor.nbytes for tensor in (*vision.values(), *prefill.values()))
    with zipfile.ZipFile(archive) as file:
        weights = [
            member for member in file.infolist() if "/data/weights/weight_" in member.filename
        ]
    assert sum(member.file_size for member in weights) == once
    for name, tensor in prefill.items():
        assert tensor.data_ptr() == decode[f"language.{name}"].data_ptr(), name


def test_inspect_shows_the_programs_and_how_they_are_linked(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(archive)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for line in LINKS:
        assert line in shown
    assert main(["inspect", str(archive), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["links"][0] == {
        "source": "vision",
        "output": "output",
        "target": "prefill",
        "input": "features",
    }
    stacks = {stack["role"]: stack for stack in found["stacks"]}
    assert found["joined"] == ["vision", "prefill"] and list(stacks) == ["vision", "decoder"]
    assert all(site["legal"] for stack in stacks.values() for site in stack["sites"])
    assert stacks["decoder"]["visual"] == Sizes().visual and stacks["decoder"]["merge"] is not None
    assert [value["name"] for value in found["inputs"]] == ["pixels", "input_ids"]
    assert found["unclear"] is None and list(found["graphs"]) == ["vision", "prefill", "decode"]
