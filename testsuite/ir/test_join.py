"""Programs joined at their links are the model they were split from."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from testsuite.zoo import llava, llava_parts
from testsuite.zoo.handvlm import HandVlm, Sizes
from testsuite.zoo.handvlm_parts import inputs, parts
from testsuite.zoo.weights import randomise
from torch.export import Dim, ExportedProgram

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import analyse
from tokopt.ir.join import chain, join
from tokopt.ir.links import Link, find_links
from tokopt.ir.structure import structural_faults
from tokopt.passes.normalize import normalize
from tokopt.passes.validate import relative_difference, run_program

SIZES = Sizes(layers=2, tower_layers=2)


def joined(graphs: dict[str, ExportedProgram]) -> ExportedProgram:
    normal = {name: normalize(graph) for name, graph in graphs.items()}
    return join(normal, find_links(normal), "prefill")


@pytest.mark.parametrize(("dynamic", "batch", "text"), [(False, 1, 6), (True, 3, 9)])
def test_vision_and_prefill_joined_compute_what_the_model_does(
    dynamic: bool, batch: int, text: int
) -> None:
    program = joined(parts(SIZES, dynamic=dynamic))
    assert structural_faults(program) == ()
    pixels, ids = inputs(SIZES, batch, text, seed=5)
    model = randomise(HandVlm(SIZES).eval().requires_grad_(False), 0)
    wanted = model.language(ids, model.vision(pixels))
    got = run_program(program, {"pixels": pixels, "input_ids": ids})
    assert len(got) == len(wanted) == 5
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    roles = {stack.role: stack for stack in analyse(program).stacks}
    assert roles["vision"].count == roles["decoder"].count == SIZES.visual
    assert roles["decoder"].merge is not None


def test_a_library_model_split_by_its_own_arguments_joins_to_the_model() -> None:
    graphs, model = llava_parts.parts()
    assert [str(link) for link in find_links(graphs)] == ["vision.features → prefill.features"]
    program = joined(graphs)
    pixels, ids = llava.inputs(1, llava.VISUAL + 9, seed=3)
    with torch.no_grad():
        wanted = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits
    got = run_program(program, {"pixel_values": pixels, "input_ids": ids})[0]
    assert relative_difference(wanted, got) < 1e-5
    roles = {stack.role: stack for stack in analyse(program).stacks}
    assert [site.legal for site in roles["vision"].sites].count(True) >= 1
    assert roles["decoder"].merge is not None and roles["decoder"].count == llava.VISUAL


def test_a_joined_program_is_called_by_name_with_the_examples_of_its_parts() -> None:
    graphs = parts(SIZES)
    program = joined(graphs)
    _, named = program.example_inputs or ((), {})
    assert list(named) == ["pixels", "input_ids"]
    assert len(program.module()(**named)) == 5
    assert all(name.partition(".")[0] in graphs for name in program.state_dict)


def test_what_runs_before_the_main_program_is_in_its_order() -> None:
    links = [Link("b", "x", "main", "x"), Link("a", "y", "b", "y"), Link("main", "z", "after", "z")]
    assert chain(links, "main") == ["a", "b", "main"]
    assert chain(links, "a") == ["a"]
    assert chain([], "alone") == ["alone"]


class Total(torch.nn.Module):
    """Gives what fits no input."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value.sum()


def exported(module: torch.nn.Module, *shape: int, free: Any = None) -> ExportedProgram:
    return torch.export.export(
        module, (torch.ones(shape),), dynamic_shapes=None if free is None else (free,)
    )


@pytest.mark.parametrize(
    ("front", "message"),
    [
        (lambda: exported(torch.nn.ReLU(), 4, 5), "makes a size of 4 one of"),
        (
            lambda: exported(torch.nn.AdaptiveAvgPool1d(5), 4, 9, free={1: Dim("n", min=2)}),
            "makes a size of 4 one of",
        ),
    ],
)
def test_a_size_free_in_one_program_only_is_refused_by_name(front: Any, message: str) -> None:
    graphs = {
        "front": normalize(front()),
        "prefill": normalize(exported(Total(), 4, 5, free={0: Dim("rows", min=2)})),
    }
    with pytest.raises(UnsupportedError, match=re.escape(message)) as refused:
        join(graphs, find_links(graphs), "prefill")
    assert "'front' and 'prefill' with the same free sizes" in str(refused.value.hint)


def test_a_free_size_that_no_link_explains_is_refused() -> None:
    graphs = {
        "front": normalize(
            exported(torch.nn.AdaptiveAvgPool1d(5), 4, 9, free={1: Dim("n", min=2)})
        ),
        "prefill": normalize(exported(Total(), 4, 5)),
    }
    with pytest.raises(UnsupportedError, match="a free size of program 'front'"):
        join(graphs, find_links(graphs), "prefill")


def test_a_size_that_is_constant_behind_makes_it_constant_in_front() -> None:
    graphs = {
        "front": normalize(exported(torch.nn.ReLU(), 4, 5, free={0: Dim("rows", min=2)})),
        "prefill": normalize(exported(Total(), 4, 5)),
    }
    program = join(graphs, find_links(graphs), "prefill")
    (relu,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    assert relu.meta["val"].shape == (4, 5) and not program.range_constraints
