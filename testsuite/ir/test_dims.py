from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from tokopt.ir.axis import locate
from tokopt.ir.dims import Dims, arguments_of, describe, infer_dims, is_factory, operator_name
from tokopt.ir.errors import UnsupportedError


def exported(module: nn.Module, *inputs: Tensor, **given: object) -> ExportedProgram:
    return export(module.eval(), inputs, **given)  # type: ignore[arg-type]


def node(program: ExportedProgram, name: str):  # type: ignore[no-untyped-def]
    return next(n for n in program.graph.nodes if n.name == name)


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(torch.fft.fft(x).real @ x) + torch.special.i0(x)


def test_an_operator_without_a_rule_is_an_error_that_names_all_of_them_and_the_place() -> None:
    with pytest.raises(UnsupportedError) as error:
        infer_dims(exported(Unknown(), torch.randn(3, 3)))
    assert error.value.exit_code == 3
    assert error.value.what.startswith("operator aten::fft_fft has no dim rule")
    assert "aten::linalg_eigvalsh" in error.value.what and "special_i0" in error.value.what
    where = error.value.where or ""
    assert "node fft_fft (aten::fft_fft)" in where and "test_dims.py" in where


def test_an_unknown_operator_is_named_once() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i0(torch.special.i0(x))

    with pytest.raises(UnsupportedError) as error:
        infer_dims(exported(Twice(), torch.randn(3)))
    assert error.value.what.count("special_i0") == 1 and "also" not in error.value.what


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 7, 8))
        self.qkv = nn.Linear(8, 24)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.cls.expand(patches.shape[0], -1, -1), patches], 1) + self.position
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).flatten(2)[:, 1:], x.mean(1)


@pytest.fixture(scope="module", params=[False, True], ids=["fixed batch", "any batch"])
def vit(request: pytest.FixtureRequest) -> tuple[ExportedProgram, Dims]:
    shapes = {"patches": {0: Dim("b", min=1, max=9)}} if request.param else None
    program = exported(Vit(), torch.randn(3, 6, 8), dynamic_shapes=shapes)
    return program, infer_dims(program)


def test_the_rows_of_a_vit_are_one_axis_with_a_learned_row_in_front(
    vit: tuple[ExportedProgram, Dims],
) -> None:
    program, dims = vit
    patches = dims.axis(node(program, "patches"), 1)
    rows = dims.axis(node(program, "cat"), 1)
    assert [leaf.length for leaf in rows.leaves()] == [1, 6]
    assert [leaf.learned for leaf in rows.leaves()] == [True, False]
    assert rows.leaves()[1] is patches
    for n in program.graph.nodes:
        for axis in dims.axes.get(n, []):
            if axis.root.length in (6, 7):
                assert locate(axis, patches) is not None, n.name
    kept, mean = program.graph.output_node().args[0]
    assert dims.axis(kept, 1) is patches
    assert all(locate(a, patches) is None for a in dims.axes[mean])


def test_the_batch_is_one_axis_and_no_other_is(vit: tuple[ExportedProgram, Dims]) -> None:
    program, dims = vit
    batch = dims.axis(node(program, "patches"), 0)
    outputs = program.graph.output_node().args[0]
    assert all(dims.axis(out, 0) is batch for out in outputs)
    carrying = {a.root.length for axes in dims.axes.values() for a in axes if locate(a, batch)}
    assert carrying == {batch.length}


def test_heads_are_factors_of_features(vit: tuple[ExportedProgram, Dims]) -> None:
    program, dims = vit
    flat = next(n for n in program.graph.nodes if "flatten" in n.name and "un" not in n.name)
    assert [f.root.length for f in dims.axis(flat, 2).factors] == [2, 4]


def test_elements_of_a_call_with_several_outputs_have_its_axes(
    vit: tuple[ExportedProgram, Dims],
) -> None:
    program, dims = vit
    chunk = node(program, "chunk")
    assert chunk not in dims.axes and len(dims.outs[chunk]) == 3
    for n in chunk.users:
        assert dims.axes[n] is dims.outs[chunk][n.args[1]]


def test_values_that_no_input_reaches_are_learned(vit: tuple[ExportedProgram, Dims]) -> None:
    _, dims = vit
    names = {n.name for n in dims.learned}
    assert {"p_cls", "p_position", "expand"} <= names
    assert not {"patches", "cat", "add", "linear"} & names


def test_the_sum_of_sizes_that_depend_on_a_symbol_is_an_axis_too() -> None:
    class Prompt(nn.Module):
        def forward(self, text: Tensor, image: Tensor) -> Tensor:
            x = torch.cat([image, text], 1)
            return x[:, 4:] + text

    n = Dim("n", min=2, max=99)
    program = exported(
        Prompt(),
        torch.randn(2, 5, 3),
        torch.randn(2, 4, 3),
        dynamic_shapes={"text": {1: n}, "image": None},
    )
    dims = infer_dims(program)
    out = program.graph.output_node().args[0][0]
    assert dims.axis(out, 1) is dims.axis(node(program, "text"), 1)
    assert len(dims.axis(node(program, "cat"), 1).leaves()) == 2


def test_arguments_have_their_schema_names_however_they_were_given() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    call = graph.call_function(torch.ops.aten.softmax.int, (x, -1), {"dtype": torch.float32})
    assert arguments_of(call) == {"self": x, "dim": -1, "dtype": torch.float32}
    assert operator_name(call) == "aten::softmax" and not is_factory(call)
    assert is_factory(graph.call_function(torch.ops.aten.new_zeros.default, (x, [2])))


def test_a_place_is_told_by_node_module_and_line(vit: tuple[ExportedProgram, Dims]) -> None:
    program, _ = vit
    text = describe(node(program, "linear"))
    assert text.startswith("node linear (aten::linear) in module") and "qkv" in text
    assert "test_dims.py" in text and "linear.py" not in text
    assert describe(node(program, "patches")) == "patches"
