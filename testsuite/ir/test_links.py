"""How the programs of an archive belong together: by names, by forms, or by asking the user."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from testsuite.zoo.handvlm import Sizes
from testsuite.zoo.handvlm_parts import parts
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tokopt.ir.errors import InputError
from tokopt.ir.links import Link, find_links


class Gives(nn.Module):
    """Returns ``value`` times 2, arranged as asked."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def forward(self, value: Tensor) -> Any:
        made = [value * (2 + i) for i in range(max(1, len(self.names)))]
        return dict(zip(self.names, made, strict=True)) if self.names else made[0]


class Takes(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first.sum() + second.sum()


def program(module: nn.Module, *shapes: tuple[int, ...], **options: Any) -> ExportedProgram:
    return torch.export.export(module, tuple(torch.ones(shape) for shape in shapes), **options)


def found(graphs: Mapping[str, ExportedProgram]) -> list[str]:
    return [str(link) for link in find_links(graphs)]


@pytest.mark.parametrize("dynamic", [False, True])
def test_vision_prefill_and_decode_are_linked_by_forms(dynamic: bool) -> None:
    graphs = parts(Sizes(layers=2), dynamic=dynamic)
    assert found(graphs) == [
        "vision.output → prefill.features",
        "prefill.output_1 → decode.cache_0",
        "prefill.output_2 → decode.cache_1",
        "prefill.output_3 → decode.cache_2",
        "prefill.output_4 → decode.cache_3",
    ]
    assert find_links({"only": graphs["prefill"]}) == ()


def test_names_come_before_forms_and_order() -> None:
    graphs = {"a": program(Gives("second", "first"), (2, 3)), "b": program(Takes(), (2, 3), (2, 3))}
    assert found(graphs) == ["a.first → b.first", "a.second → b.second"]
    graphs["a"] = program(Gives("second", "other"), (2, 3))
    assert found(graphs) == ["a.other → b.first", "a.second → b.second"]


def test_a_tensor_of_another_size_or_dtype_is_not_linked_and_a_free_size_fits() -> None:
    takes = program(Takes(), (2, 3), (2, 4))
    assert found({"a": program(Gives(), (2, 5)), "b": takes}) == []
    half = torch.export.export(Gives(), (torch.ones(2, 3).half(),))
    assert found({"a": half, "b": takes}) == []
    free = program(Gives(), (3, 4), dynamic_shapes=({0: Dim("rows", min=2)},))
    assert found({"a": free, "b": takes}) == ["a.output → b.second"]


def one_output_for_two_inputs() -> dict[str, ExportedProgram]:
    return {"a": program(Gives(), (2, 3)), "b": program(Takes(), (2, 3), (2, 3))}


def two_programs_give_one_form() -> dict[str, ExportedProgram]:
    pooled = program(nn.AvgPool1d(2), (2, 8))
    return {"a": pooled, "c": pooled, "b": program(Takes(), (2, 4), (5, 5))}


def two_programs_give_one_name() -> dict[str, ExportedProgram]:
    one = program(Gives("first"), (2, 3))
    return {"a": one, "c": one, "b": program(Takes(), (2, 3), (5, 5))}


@pytest.mark.parametrize(
    ("graphs", "message"),
    [
        (one_output_for_two_inputs, "which of a.output is b.first, b.second (float32 [2, 3])"),
        (two_programs_give_one_form, "which of a.output, c.output is b.first (float32 [2, 4])"),
        (two_programs_give_one_name, "which of a.first, c.first is b.first (float32 [2, 3])"),
    ],
)
def test_a_choice_is_the_users_and_the_message_says_how_to_make_it(
    graphs: Callable[[], dict[str, ExportedProgram]], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        find_links(graphs())
    assert "return a dictionary with the input's name as its key" in str(refused.value.hint)


def test_programs_that_would_feed_each_other_are_an_error() -> None:
    one = program(Gives(), (2, 4))
    with pytest.raises(InputError, match="would feed each other"):
        find_links({"a": one, "b": one})


def test_two_tensors_of_one_name_that_do_not_fit_are_an_error() -> None:
    graphs = {"a": program(Gives("first"), (2, 3)), "b": program(Takes(), (2, 4), (5, 5))}
    message = "output 'first' of program 'a' is float32 [2, 3], and the input of that name"
    with pytest.raises(InputError, match=re.escape(message)):
        find_links(graphs)


def test_a_link_is_written_as_an_arrow() -> None:
    assert str(Link("a", "x", "b", "y")) == "a.x → b.y"
