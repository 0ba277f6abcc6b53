from collections.abc import Callable

import pytest
import torch
from testsuite.ir.scramble import scrambled
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from tokopt.ir.program import Program
from tokopt.ir.text import dtype_text, print_graph, print_program
from tokopt.passes.normalize import normalize


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        out = self.head(rows.flatten(0, 1) * self.scale + 1).to(torch.bfloat16)
        self.seen.add_(1)
        first, second = torch.split(out, 1, dim=-1)
        return first, second


@pytest.fixture(scope="module")
def small() -> ExportedProgram:
    sizes = {"rows": {0: Dim("items", min=2, max=8)}}
    exported = export(Small().eval(), (torch.ones(3, 5, 4),), dynamic_shapes=sizes)
    return normalize(exported)


def test_a_program_is_printed_one_node_a_line(
    small: ExportedProgram, check: Callable[[str], None]
) -> None:
    """
    CHECK: graph model {
    CHECK-NEXT: s0 in [2, 8]
    CHECK-NEXT: %head.weight : f32[2, 4] = parameter
    CHECK-NEXT: %head.bias : f32[2] = parameter
    CHECK-NEXT: %seen : f32[2] = buffer
    CHECK-NEXT: %scale : f32[1] = buffer (not saved)
    CHECK-NEXT: %rows : f32[s0, 5, 4] = input
    CHECK: %view_0 : f32[5*s0, 4] = aten.view(%rows, [%mul_0, 4])
    CHECK: %linear_0 : f32[5*s0, 2] = aten.linear(%add_0, %head.weight, %head.bias)
    CHECK-NEXT: %_to_copy_0 : bf16[5*s0, 2] = aten._to_copy(%linear_0, dtype=bf16)
    CHECK: %split_0 : (bf16[5*s0, 1], bf16[5*s0, 1]) = aten.split.Tensor(%_to_copy_0, 1, -1)
    CHECK-NEXT: %getitem_0 : bf16[5*s0, 1] = operator.getitem(%split_0, 0)
    CHECK-NEXT: %getitem_1 : bf16[5*s0, 1] = operator.getitem(%split_0, 1)
    CHECK-NEXT: buffer mutation seen = %add_1
    CHECK-NEXT: return %getitem_0, %getitem_1
    CHECK-NEXT: }
    """
    check(print_graph(small))


def test_an_anonymous_print_has_kinds_and_positions_only(
    small: ExportedProgram, check: Callable[[str], None]
) -> None:
    """
    CHECK: %parameter_0 : f32[2, 4] = parameter
    CHECK-NEXT: %parameter_1 : f32[2] = parameter
    CHECK-NEXT: %buffer_0 : f32[2] = buffer
    CHECK-NEXT: %buffer_1 : f32[1] = buffer (not saved)
    CHECK-NEXT: %input_0 : f32[s0, 5, 4] = input
    CHECK: aten.linear(%add_0, %parameter_0, %parameter_1)
    CHECK: buffer mutation = %add_1
    """
    text = print_graph(small, anonymous=True)
    check(text)
    assert not any(word in text for word in ("head", "seen", "rows", "scale"))


def test_the_names_torch_gave_its_nodes_are_not_printed(small: ExportedProgram) -> None:
    module = torch.fx.GraphModule(small.graph_module, small.graph)
    before = print_graph(small)
    calls = [n for n in module.graph.nodes if n.op == "call_function"]
    names = [n.name for n in calls]
    try:
        for number, node in enumerate(calls):
            node.name = f"other_{number}"
        assert print_graph(small) == before
    finally:
        for node, name in zip(calls, names, strict=True):
            node.name = name


def test_two_exports_of_one_model_print_equally(small: ExportedProgram) -> None:
    sizes = {"rows": {0: Dim("others", min=2, max=8)}}
    again = export(Small().eval(), (torch.ones(4, 5, 4),), dynamic_shapes=sizes)
    assert print_graph(normalize(again)) == print_graph(small)


def test_another_constant_is_another_print() -> None:
    class Scaled(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = by

        def forward(self, x: Tensor) -> Tensor:
            return x * self.by

    one, other = (print_graph(export(Scaled(by), (torch.ones(2),))) for by in (2.0, 3.0))
    assert one != other


@pytest.mark.parametrize("family", ["llava", "handvit"])
def test_names_and_metadata_do_not_reach_the_anonymous_print(
    family: str, normal: Callable[[str], ExportedProgram]
) -> None:
    exported = normal(family)
    other = scrambled(exported)
    assert print_graph(other) != print_graph(exported)
    assert print_graph(other, anonymous=True) == print_graph(exported, anonymous=True)


def test_an_input_called_like_a_call_keeps_its_name() -> None:
    class Sum(nn.Module):
        def forward(self, add_0: Tensor) -> Tensor:
            return add_0 + add_0

    text = print_graph(export(Sum(), (torch.ones(2),)))
    assert "%add_0 : f32[2] = input" in text
    assert "%add_1 : f32[2] = aten.add.Tensor(%add_0, %add_0)" in text


def test_an_input_called_like_a_parameter_is_told_apart() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.ones(2))

        def forward(self, rows: Tensor) -> Tensor:
            return self.rows + rows

    text = print_graph(export(Both(), (torch.ones(2),)))
    assert "%rows : f32[2] = parameter" in text and "%input_0 : f32[2] = input" in text
    assert "aten.add.Tensor(%rows, %input_0)" in text


def test_every_graph_of_an_archive_is_printed(small: ExportedProgram) -> None:
    text = print_program(Program({"prefill": small, "decode": small}))
    assert text.count("graph prefill {") == text.count("graph decode {") == 1


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        (torch.float16, "f16"),
        (torch.bfloat16, "bf16"),
        (torch.int64, "i64"),
        (torch.uint8, "u8"),
        (torch.bool, "bool"),
        (torch.float8_e4m3fn, "float8_e4m3fn"),
        (torch.complex64, "c64"),
    ],
)
def test_dtypes_are_short(dtype: torch.dtype, text: str) -> None:
    assert dtype_text(dtype) == text
