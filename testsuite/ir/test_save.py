from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from testsuite.ir.load_archives import dynamic, plain
from torch.export.pt2_archive._package import load_pt2
from torch.utils import _pytree as pytree

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.load import load
from tokopt.ir.program import Program
from tokopt.ir.save import save


def same(ours: Any, theirs: Any) -> bool:
    a, b = pytree.tree_leaves(ours), pytree.tree_leaves(theirs)
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_a_saved_program_is_read_by_torch_and_by_us_with_the_same_results(tmp_path: Path) -> None:
    exported = dynamic()
    save(Program.of(exported), tmp_path / "model.pt2")
    x = torch.randn(5, 12, 4)
    expected = exported.module()(x)
    assert same(torch.export.load(tmp_path / "model.pt2").module()(x), expected)
    ours = load(tmp_path / "model.pt2").main
    assert same(ours.module()(x), expected)
    assert ours.range_constraints == exported.range_constraints
    assert ours.example_inputs is not None and same(ours.example_inputs, exported.example_inputs)


WRITE = """
import sys
from torch.fx.traceback import NodeSource
from tokopt.ir.load import load
from tokopt.ir.save import save
program = load(sys.argv[1])
for node in program.main.graph.nodes:
    node.meta["from_node"] = [NodeSource(node, "some pass")]  # holds an address
save(program, sys.argv[2])
"""


def test_another_process_writes_the_same_bytes_under_another_name(tmp_path: Path) -> None:
    save(Program.of(dynamic()), tmp_path / "in.pt2")
    command = [sys.executable, "-c", WRITE, tmp_path / "in.pt2", tmp_path / "other.pt2"]
    environment = {**os.environ, "PYTHONHASHSEED": "5"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    save(load(tmp_path / "in.pt2"), tmp_path / "model.pt2")
    assert (tmp_path / "other.pt2").read_bytes() == (tmp_path / "model.pt2").read_bytes()


def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path: Path) -> None:
    for number, exported in enumerate((plain(), dynamic(), dynamic().run_decompositions({}))):
        first, second, third = (tmp_path / f"{number}{step}.pt2" for step in "abc")
        save(Program.of(exported), first)
        save(load(first), second)  # drops the metadata that loading drops
        save(load(second), third)
        assert second.read_bytes() == third.read_bytes()


def test_several_programs_share_their_weights_in_the_file(tmp_path: Path) -> None:
    model = torch.nn.Linear(256, 256)
    graphs = {
        name: torch.export.export(model.eval(), (torch.randn(rows, 256),))
        for name, rows in (("prefill", 7), ("decode", 2))
    }
    path = tmp_path / "two.pt2"
    save(Program(graphs), path)
    assert path.stat().st_size < 1.5 * 256 * 256 * 4
    x = torch.randn(2, 256)
    theirs = load_pt2(path).exported_programs
    assert torch.equal(theirs["decode"].module()(x), model(x))
    ours = load(path).graphs
    assert torch.equal(ours["decode"].module()(x), model(x))
    pointers = [graph.state_dict["weight"].data_ptr() for graph in ours.values()]
    assert pointers[0] == pointers[1]


def test_views_ties_and_empty_tensors_survive(tmp_path: Path) -> None:
    class Views(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.arange(24.0).reshape(4, 6)
            self.register_buffer("part", whole[1:3, ::2])
            self.register_buffer("turned", whole.t())
            self.register_buffer("empty", torch.zeros(0, 3))
            self.register_buffer("gone", torch.zeros(2, 0))
            self.small = torch.nn.Parameter(
                torch.ones(3, dtype=torch.bfloat16), requires_grad=False
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes = self.empty.shape[1] + self.gone.shape[0]
            return x + self.part.sum() + self.turned.sum() + self.small.sum() + sizes

    exported = torch.export.export(Views(), (torch.ones(2),))
    save(Program.of(exported), tmp_path / "model.pt2")
    for read in (load(tmp_path / "model.pt2").main, torch.export.load(tmp_path / "model.pt2")):
        assert same(dict(read.state_dict), dict(exported.state_dict))
        state = read.state_dict
        assert state["part"].stride() == (6, 2) and not state["small"].requires_grad
        address = state["part"].untyped_storage().data_ptr()
        assert address == state["turned"].untyped_storage().data_ptr()


def test_example_inputs_that_only_a_pickle_holds_are_left_out(tmp_path: Path) -> None:
    exported = plain()
    exported._example_inputs = ((torch.ones(2, 4),), {"y": Path("x"), "mode": "it"})
    save(Program.of(exported), tmp_path / "model.pt2")
    assert load(tmp_path / "model.pt2").main.example_inputs is None


def test_a_weight_that_only_a_pickle_holds_is_unsupported_and_leaves_no_file(
    tmp_path: Path,
) -> None:
    exported = plain()
    exported.state_dict["layer.bias"] = torch.eye(4).to_sparse()
    with pytest.raises(UnsupportedError, match=r"layer\.bias"):
        save(Program.of(exported), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_an_input_error_and_the_old_one_stays(
    tmp_path: Path,
) -> None:
    program = Program.of(plain())
    with pytest.raises(InputError, match="cannot be written"):
        save(program, tmp_path / "no" / "model.pt2")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        save(program, tmp_path / "folder.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pt2"]


def test_no_history_of_passes_is_written(tmp_path: Path) -> None:
    exported = dynamic().run_decompositions({})
    assert any("from_node" in node.meta for node in exported.graph.nodes)
    save(Program.of(exported), tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as file:
        description = json.loads(file.read("archive/models/model.json"))
    assert "from_node" not in json.dumps(description)
    assert any("from_node" in node.meta for node in exported.graph.nodes), "it was changed"


def test_what_saving_returns_is_where_the_bytes_of_each_weight_lie(tmp_path: Path) -> None:
    exported = plain()
    places = save(Program.of(exported), tmp_path / "model.pt2")
    content = (tmp_path / "model.pt2").read_bytes()
    tensors = [*exported.state_dict.values(), *exported.constants.values()]
    assert len(places) == len(tensors)
    for tensor in tensors:
        raw = tensor.detach().numpy().tobytes()
        place = places[tensor.untyped_storage().data_ptr(), tensor.dtype]
        assert place % 64 == 0 and content[place : place + len(raw)] == raw
