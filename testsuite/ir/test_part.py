"""Parting a joined program: what crosses is the least there is, and nothing runs too early."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.join import join
from tokopt.ir.links import find_links
from tokopt.ir.outer import outer_names
from tokopt.ir.part import part
from tokopt.ir.trace import call, fake_mode_of
from tokopt.passes.normalize import normalize
from tokopt.passes.validate import run_program

aten = torch.ops.aten
ROWS, WIDTH = 6, 4


class Front(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3, WIDTH)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"rows": self.project(x).relu()}


class Main(nn.Module):
    def forward(self, rows: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return rows.cos() + bias, bias * 2


def programs() -> dict[str, ExportedProgram]:
    with torch.no_grad():
        front = torch.export.export(Front(), (torch.ones(ROWS, 3),))
        main = torch.export.export(Main(), (torch.ones(ROWS, WIDTH), torch.ones(WIDTH)))
    return {"front": normalize(front), "forward": normalize(main)}


def node_of(graph: fx.Graph, target: object) -> fx.Node:
    (found,) = graph.find_nodes(op="call_function", target=target)
    return found


def joined() -> tuple[dict[str, ExportedProgram], ExportedProgram]:
    graphs = programs()
    return graphs, join(graphs, find_links(graphs), "forward")


def test_a_program_that_was_not_rewritten_comes_apart_as_it_was() -> None:
    graphs, program = joined()
    made, links = part(program, graphs, find_links(graphs), "forward")
    assert links == find_links(graphs)
    given = {"x": torch.randn(ROWS, 3), "bias": torch.randn(WIDTH)}
    (rows,) = run_program(made["front"].exported, {"x": given["x"]})
    assert torch.equal(rows, run_program(graphs["front"], {"x": given["x"]})[0])
    got = run_program(made["forward"].exported, {"rows": rows, "bias": given["bias"]})
    wanted = run_program(program, given)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert [one.outputs for one in made.values()] == [("rows",), ("output_0", "output_1")]
    assert list(made["front"].exported.state_dict) == [
        "front.project.weight",
        "front.project.bias",
    ]


def test_rows_that_are_restored_cross_before_they_are_restored() -> None:
    graphs, program = joined()
    relu, cos = (node_of(program.graph, t) for t in (aten.relu.default, aten.cos.default))
    mode = fake_mode_of(program.graph)
    with program.graph.inserting_before(cos):
        short = call(program.graph, aten.slice.Tensor, relu, 0, 0, 2, mode=mode)
        long = call(program.graph, aten.repeat.default, short, [3, 1], mode=mode)
        cos.replace_input_with(relu, long)
    made, links = part(program, graphs, find_links(graphs), "forward")
    assert [str(link) for link in links] == ["front.rows → forward.rows"]
    (handed,) = made["front"].exported.graph.output_node().args[0]
    assert handed.meta["val"].shape == (2, WIDTH)
    targets = {node.target for node in made["forward"].exported.graph.nodes}
    assert aten.repeat.default in targets and aten.slice.Tensor not in targets


def test_a_call_that_needs_what_only_the_next_program_is_given_is_refused() -> None:
    graphs, program = joined()
    relu = node_of(program.graph, aten.relu.default)
    bias = next(n for n in program.graph.find_nodes(op="placeholder") if n.name == "bias")
    with program.graph.inserting_before(relu):
        (source,) = relu.all_input_nodes
        relu.replace_input_with(source, call(program.graph, aten.mul.Tensor, source, bias))
    with pytest.raises(UnsupportedError, match="'front' depend on what 'forward' is given"):
        part(program, graphs, find_links(graphs), "forward")


def test_later_programs_get_their_names_in_front_of_tensors_that_others_have() -> None:
    places = [("a", "ids"), ("b", "x"), ("c-1", "ids"), ("d", "y")]
    assert list(outer_names(places, ["y"]).values()) == ["ids", "x", "c_1_ids", "d_y"]
