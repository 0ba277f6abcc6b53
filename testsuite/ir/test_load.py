from __future__ import annotations

import collections
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from testsuite.ir.load_archives import dynamic, plain, rewritten, saved, written
from torch.export import ExportedProgram
from torch.export.pt2_archive._package import package_pt2
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import Max

from tokopt.ir.load import load


@pytest.fixture(scope="module")
def plain_bytes() -> bytes:
    return saved(plain())


@pytest.fixture(scope="module")
def dynamic_bytes() -> bytes:
    return saved(dynamic())


def same(ours: Any, theirs: Any) -> bool:
    a, b = pytree.tree_leaves(ours), pytree.tree_leaves(theirs)
    return len(a) == len(b) and all(map(torch.equal, a, b))


def lines(program: ExportedProgram) -> list[str]:
    """Every node with its shape, as text: torch reads ``Max`` into another class than we do."""
    return [
        f"{node.name} {node.op} {node.target} {node.args} {node.kwargs} {node.meta.get('val')}"
        for node in program.graph.nodes
        if "_assert_scalar" not in str(node.target)  # quotes in their messages are replaced
    ]


def test_a_static_program_gives_the_same_graph_and_results_as_torchs_loader(
    tmp_path: Path, plain_bytes: bytes
) -> None:
    path = written(tmp_path, plain_bytes)
    ours, theirs = load(path).main, torch.export.load(path)
    assert lines(ours) == lines(theirs)
    assert ours.graph_signature == theirs.graph_signature
    x, y = torch.randn(2, 4), torch.randn(4)
    got, expected = ours.module()(x, y=y, mode="it"), theirs.module()(x, y=y, mode="it")
    assert got.keys() == expected.keys() and same(got, expected)
    assert list(ours.state_dict) == list(theirs.state_dict)
    assert same(ours.state_dict, theirs.state_dict) and same(ours.constants, theirs.constants)
    assert isinstance(ours.state_dict["layer.weight"], torch.nn.Parameter)


def test_symbolic_sizes_load_and_every_size_in_range_gives_torchs_results(
    tmp_path: Path, dynamic_bytes: bytes
) -> None:
    path = written(tmp_path, dynamic_bytes)
    ours, theirs = load(path).main, torch.export.load(path)
    assert lines(ours) == lines(theirs)
    assert ours.range_constraints == theirs.range_constraints
    ranges = {str(limits) for limits in ours.range_constraints.values()}
    assert ranges > {"VR[2, 64]", "VR[6, 512]"}
    for batch, length in ((2, 6), (3, 7), (5, 33), (64, 512)):
        x = torch.randn(batch, length, 4)
        got = ours.module()(x)
        assert got["times"].shape == (batch, 4 * length, 4) and got["half"].shape[1] == length // 2
        assert same(got, theirs.module()(x)), (batch, length)
    with pytest.raises(AssertionError, match="512"):
        ours.module()(torch.randn(2, 513, 4))


def test_max_of_sizes_stays_the_class_that_the_exporter_used(
    tmp_path: Path, dynamic_bytes: bytes
) -> None:
    main = load(written(tmp_path, dynamic_bytes)).main
    (node,) = main.graph.find_nodes(op="call_function", target=torch.sym_max)
    assert type(node.meta["val"].node.expr) is Max


def test_a_loaded_program_can_be_decomposed_and_saved_by_torch(
    tmp_path: Path, dynamic_bytes: bytes
) -> None:
    main = load(written(tmp_path, dynamic_bytes)).main.run_decompositions({})
    again = load(written(tmp_path, saved(main), "again.pt2")).main
    x = torch.randn(4, 11, 4)
    assert same(main.module()(x), again.module()(x))


def test_example_inputs_are_read_or_absent(tmp_path: Path, plain_bytes: bytes) -> None:
    args, kwargs = load(written(tmp_path, plain_bytes)).main.example_inputs or ((), {})
    assert args[0].shape == (2, 4) and kwargs["y"].shape == (4,) and kwargs["mode"] == "it"
    program = plain()
    program.example_inputs = None
    assert load(written(tmp_path, saved(program))).main.example_inputs is None


def test_the_hash_is_that_of_the_files_bytes_and_the_source_is_its_path(
    tmp_path: Path, plain_bytes: bytes
) -> None:
    program = load(str(written(tmp_path, plain_bytes)))
    assert program.sha256 == hashlib.sha256(plain_bytes).hexdigest()
    assert program.source == str(tmp_path / "model.pt2")


def test_all_programs_of_an_archive_load_and_equal_parameters_become_one_tensor(
    tmp_path: Path,
) -> None:
    path = tmp_path / "two.pt2"
    first, second = plain(), dynamic()
    second.state_dict["layer.weight"].data.copy_(first.state_dict["layer.weight"])
    package_pt2(path, exported_programs={"prefill": first, "decode": second})
    graphs = load(path).graphs
    assert list(graphs) == ["prefill", "decode"]
    weights = [graph.state_dict["layer.weight"].data_ptr() for graph in graphs.values()]
    biases = [graph.state_dict["layer.bias"] for graph in graphs.values()]
    assert weights[0] == weights[1] and not torch.equal(*biases)
    x = torch.randn(3, 8, 4)
    assert same(graphs["decode"].module()(x), second.module()(x))


def test_tied_parameters_stay_tied_and_equal_buffers_stay_apart(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(4, 4, bias=False)
            self.b = torch.nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight
            self.register_buffer("k", torch.zeros(4))
            self.register_buffer("v", torch.zeros(4))
            self.register_buffer("part", torch.arange(12.0).reshape(3, 4)[1:, ::2].t())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x)) + self.k + self.v + self.part.sum()

    x = torch.randn(2, 4)
    program = torch.export.export(Tied().eval(), (x,))
    main = load(written(tmp_path, saved(program))).main
    state = main.state_dict
    assert state["a.weight"].data_ptr() == state["b.weight"].data_ptr()
    assert state["k"].data_ptr() != state["v"].data_ptr()
    assert torch.equal(state["part"], program.state_dict["part"])
    assert torch.equal(main.module()(x), program.module()(x))


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


@dataclass
class Output:
    hidden: torch.Tensor
    missing: torch.Tensor | None
    pooled: torch.Tensor


def test_classes_of_the_exporting_process_become_plain_containers(tmp_path: Path) -> None:
    class Model(torch.nn.Module):
        def forward(self, pair: Pair, more: dict[str, torch.Tensor]) -> Any:
            made = collections.defaultdict(list, last=pair.left - 1)
            x = more["x"]
            output = Output(pair.left + x, None, pair.right)
            return output, made, Pair(x, x + 1), collections.deque([x])

    torch.export.register_dataclass(Output, serialized_type_name="elsewhere.Output")
    pytree._register_namedtuple(Pair, serialized_type_name="elsewhere.Pair")
    more = collections.OrderedDict(x=torch.full((2,), 5.0))
    left, right = torch.ones(2), torch.zeros(2)
    program = torch.export.export(Model(), (Pair(left, right), more))
    program.example_inputs = None
    # the second file names classes that nobody has registered here, as is usual
    for place in ("elsewhere", "nowhere"):
        edit = {"models/model.json": lambda data, to=place: data.replace(b"elsewhere", to.encode())}
        main = load(written(tmp_path, rewritten(saved(program), records=edit))).main
        output, made, pair, queue = main.module()((left, right), more)
        assert type(output) is dict and list(output) == ["hidden", "pooled"]
        assert output["hidden"].tolist() == [6, 6] and output["pooled"].tolist() == [0, 0]
        assert type(made) is dict and made["last"].tolist() == [0, 0]
        assert type(pair) is tuple and pair[1].tolist() == [6, 6]
        assert type(queue) is list and queue[0].tolist() == [5, 5]


def test_archives_may_have_any_root_folder_and_extra_files(
    tmp_path: Path, plain_bytes: bytes
) -> None:
    program = plain()
    path = tmp_path / "other_name.pt"
    torch.export.save(program, path, extra_files={"note.txt": "hello"})
    assert lines(load(path).main) == lines(load(written(tmp_path, plain_bytes)).main)


def test_metadata_for_messages_is_kept_without_control_characters(
    tmp_path: Path, plain_bytes: bytes
) -> None:
    def edit(description: dict[str, Any]) -> None:
        node = description["graph_module"]["graph"]["nodes"][0]
        node["metadata"]["stack_trace"] += "\r\x0cimport os"
        node["metadata"]["source_fn_stack"] = "a,torch.hub.os.mknod"

    main = load(written(tmp_path, rewritten(plain_bytes, edit))).main
    (linear,) = main.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    assert linear.meta["stack_trace"].endswith("  import os")
    assert "load_archives.py" in linear.meta["stack_trace"]
    assert [path for path, _ in linear.meta["nn_module_stack"].values()] == ["", "layer"]
    assert linear.meta.keys() <= {"stack_trace", "nn_module_stack", "val"}


def test_a_buffer_of_bytes_is_not_a_path() -> None:
    with pytest.raises(TypeError):
        load(io.BytesIO())  # type: ignore[arg-type]
