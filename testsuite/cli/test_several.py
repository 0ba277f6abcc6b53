"""Archives of several programs at the command line: shown with their links, not half compiled."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from testsuite.zoo.handvlm import Sizes
from testsuite.zoo.handvlm_parts import parts

from tokopt.cli.compiler import compile
from tokopt.cli.main import main
from tokopt.ir.errors import UnsupportedError
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
    assert found["unclear"] is None and list(found["graphs"]) == ["vision", "prefill", "decode"]


def test_compile_refuses_them_with_their_links_and_writes_nothing(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    assert main(["compile", str(archive), "--budget", "0.5", "-o", str(made)]) == 3
    message = " ".join(capsys.readouterr().err.split())
    assert "3 programs (vision, prefill, decode; links: " + "; ".join(LINKS) in message
    assert "is not built yet" in message and list(tmp_path.iterdir()) == []


def test_where_links_are_unclear_the_message_says_so() -> None:
    one = torch.export.export(torch.nn.ReLU(), (torch.ones(2, 3),))
    with pytest.raises(UnsupportedError, match="would feed each other"):
        compile(Program({"a": one, "forward": one}), "nowhere", budget=0.5)
