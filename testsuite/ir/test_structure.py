import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from tokopt.ir.structure import normal_faults, structural_faults
from tokopt.passes.normalize import normalize


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, rows: Tensor) -> Tensor:
        for _ in range(2):
            rows = rows + self.down(self.up(rows).relu())
        return rows


@pytest.fixture(scope="module")
def sound() -> ExportedProgram:
    sizes = {"rows": {0: Dim("items", min=2, max=8)}}
    return normalize(export(Block().eval(), (torch.ones(3, 4),), dynamic_shapes=sizes))


@pytest.fixture
def program(sound: ExportedProgram) -> ExportedProgram:
    """A copy that a test may break."""
    fresh = copy.copy(sound)
    fresh._graph_module = copy.deepcopy(sound.graph_module)
    fresh._graph_signature = copy.deepcopy(sound.graph_signature)
    return fresh


def first(program: ExportedProgram, operator: str) -> fx.Node:
    return next(n for n in program.graph.nodes if operator in str(n.target))


def last(program: ExportedProgram, operator: str) -> fx.Node:
    return [n for n in program.graph.nodes if operator in str(n.target)][-1]


def only_fault(program: ExportedProgram) -> str:
    (fault,) = structural_faults(program)
    return fault


def test_a_sound_graph_has_no_faults(sound: ExportedProgram) -> None:
    assert structural_faults(sound) == normal_faults(sound) == ()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "dinov2", "handvit"])
def test_zoo_programs_in_normal_form_have_no_faults(
    family: str, normal: Callable[[str], ExportedProgram]
) -> None:
    assert structural_faults(normal(family)) == normal_faults(normal(family)) == ()


def test_checking_adds_no_guard(program: ExportedProgram) -> None:
    node = first(program, "add")
    value = node.meta["val"]
    with value.fake_mode:
        node.meta["val"] = value.new_empty(5, 4)  # the next addition asks whether 5 rows fit
    environment = value.fake_mode.shape_env
    guards, ranges = len(environment.guards), dict(environment.var_to_range)
    assert structural_faults(program)
    assert (len(environment.guards), dict(environment.var_to_range)) == (guards, ranges)


def test_a_call_without_a_value_is_a_fault(program: ExportedProgram) -> None:
    node = first(program, "relu")
    del node.meta["val"]
    assert "no value is recorded" in only_fault(program)
    assert only_fault(program).startswith("node relu (aten::relu)")


def test_a_stale_shape_is_a_fault_at_its_node_and_its_readers(program: ExportedProgram) -> None:
    node = first(program, "relu")
    node.meta["val"] = node.meta["val"][:, :6]
    faults = structural_faults(program)
    assert len(faults) == 2
    assert "f32[s" in faults[0] and ", 6] on cpu is recorded" in faults[0]
    assert ", 8] on cpu" in faults[0].split("gives")[1]
    assert "linear" in faults[1] and "does not accept its operands" in faults[1]


def test_a_wrong_symbol_is_a_fault(program: ExportedProgram) -> None:
    node = last(program, "add")
    value = node.meta["val"]
    with value.fake_mode:
        node.meta["val"] = value.new_empty(value.shape[0] + 1, 4)
    assert "is recorded, and the operator gives" in only_fault(program)


def test_a_wrong_dtype_is_a_fault(program: ExportedProgram) -> None:
    node = last(program, "add")
    with node.meta["val"].fake_mode:
        node.meta["val"] = node.meta["val"].half()
    assert "f16" in only_fault(program)


def test_two_fake_modes_in_one_graph_are_a_fault(program: ExportedProgram) -> None:
    node = first(program, "relu")
    with torch._subclasses.FakeTensorMode():
        node.meta["val"] = torch.empty(3, 8)
    assert any("relu" in fault for fault in structural_faults(program))


def test_a_use_before_its_value_is_a_fault(program: ExportedProgram) -> None:
    first(program, "relu").append(first(program, "linear"))
    assert any(fault.startswith("fx.Graph.lint") for fault in structural_faults(program))


def test_a_method_call_is_a_fault(program: ExportedProgram) -> None:
    node = first(program, "relu")
    with program.graph.inserting_after(node):
        program.graph.call_method("relu", (node,))
    assert any("call_method" in fault for fault in structural_faults(program))


def test_placeholders_are_those_of_the_signature(program: ExportedProgram) -> None:
    first(program, "p_up_weight").name = "other"
    assert only_fault(program) == "placeholders: 'other' where the signature says 'p_up_weight'"


def test_a_placeholder_more_is_a_fault(program: ExportedProgram) -> None:
    placeholder = first(program, "p_up_weight")
    with program.graph.inserting_after(last(program, "rows")):
        program.graph.placeholder("more").meta["val"] = placeholder.meta["val"]
    assert only_fault(program) == "placeholders: 6 where the signature has 5"


def test_a_weight_the_program_lacks_is_a_fault(program: ExportedProgram) -> None:
    program._state_dict = {k: v for k, v in program.state_dict.items() if k != "up.weight"}
    assert only_fault(program) == "p_up_weight: the program holds no parameter 'up.weight'"


def test_the_output_is_the_one_of_the_signature(program: ExportedProgram) -> None:
    node = first(program, "relu")
    program.graph.output_node().args = ((node,),)
    assert only_fault(program).startswith(f"output: {node.name} where the signature says")


def test_an_output_more_is_a_fault(program: ExportedProgram) -> None:
    program.graph.output_node().args = ((first(program, "relu"), last(program, "add")),)
    assert only_fault(program).endswith("for 1 results in the signature")


def test_dead_calls_are_not_in_normal_form(program: ExportedProgram) -> None:
    node = first(program, "relu")
    with program.graph.inserting_after(node):
        dead = program.graph.call_function(torch.ops.aten.relu.default, (node,))
    dead.meta["val"] = node.meta["val"]
    assert structural_faults(program) == ()
    (fault,) = normal_faults(program)
    assert fault == f"node {dead.name} (aten::relu): nobody reads its result"


def test_writing_in_place_is_not_in_normal_form(program: ExportedProgram) -> None:
    node = first(program, "relu")
    node.target = torch.ops.aten.relu_.default
    assert structural_faults(program) == ()
    (fault,) = normal_faults(program)
    assert "writes to its operand in place" in fault
