import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.samples import Tiny, tiny
from torch import Tensor, nn
from torch.export import ExportedProgram, export

from tokopt.ir.program import Program
from tokopt.ir.structure import structural_faults
from tokopt.ir.text import print_program
from tokopt.passes.manager import PassManager
from tokopt.passes.normalize import Normalize, normalize
from tokopt.passes.spec import NORMALIZED


class Untidy(nn.Module):
    """Writes in place, asserts, and computes what nobody reads."""

    def forward(self, rows: Tensor) -> Tensor:
        own = rows.clone()
        own.add_(1)
        torch._check(own.shape[0] == 3)
        own.exp()
        return own.to(torch.float64)


def test_the_result_is_in_normal_form_and_computes_the_same() -> None:
    raw = Program.of(export(Untidy(), (torch.ones(3, 4),)))
    assert NORMALIZED.faults(raw)
    result = Normalize().run(raw)
    assert result.modified and result.statistics["nodes removed"] == 2
    assert NORMALIZED.faults(result.program) == ()
    rows = torch.randn(3, 4)
    assert torch.equal(result.program.main.module()(rows), Untidy()(rows))


@pytest.mark.parametrize("name", ["llava_dynamic", "random1", "random4", "random5", "dino"])
def test_sizes_that_are_free_stay_free(name: str) -> None:
    def sizes(exported: ExportedProgram) -> list[str]:
        inputs = exported.graph.find_nodes(op="placeholder")
        return [str(getattr(node.meta.get("val"), "shape", None)) for node in inputs]

    family = analysed(name)
    assert sizes(family.facts.exported) == sizes(family.sample.exported)


def test_a_program_in_normal_form_is_handed_through() -> None:
    result = Normalize().run(tiny())
    assert not result.modified and result.program is tiny()


def test_every_graph_of_an_archive_is_normalised() -> None:
    graphs = {name: export(Untidy(), (torch.ones(3, 4),)) for name in ("prefill", "decode")}
    after = PassManager([Normalize()]).run(Program(graphs))
    assert list(after.graphs) == ["prefill", "decode"]
    assert NORMALIZED.faults(after) == ()
    assert print_program(after).count("aten.add.Tensor") == 2


def test_what_is_not_changed_is_shared() -> None:
    raw = Program.of(export(Tiny().eval(), (torch.ones(3, 4),)))
    after = Normalize().run(raw).program
    weight = after.main.state_dict["head.weight"]
    assert weight.data_ptr() == raw.main.state_dict["head.weight"].data_ptr()


def test_an_input_named_as_a_function_of_python_keeps_its_name() -> None:
    """The one of ``nn.Sequential`` is: fx itself would call it ``input_1``."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4)).eval()
    normal = normalize(torch.export.export(model, (torch.ones(2, 4),)))
    assert [spec.arg.name for spec in normal.graph_signature.input_specs][-1] == "input"
    assert structural_faults(normal) == ()
