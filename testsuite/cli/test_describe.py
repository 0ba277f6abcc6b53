import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from testsuite.ir.scramble import scrambled
from testsuite.passes import grouped_vlm
from testsuite.zoo import random_transformer
from testsuite.zoo.random_spec import draw
from torch import Tensor, nn
from torch.export import ExportedProgram, export

from tokopt.cli.describe import describe_facts, describe_program
from tokopt.ir.facts import analyse
from tokopt.ir.program import Program
from tokopt.passes.normalize import normalize

Normal = Callable[[str], ExportedProgram]


def described(exported: ExportedProgram, **options: bool) -> dict[str, Any]:
    return describe_facts(analyse(exported), **options)


@pytest.mark.parametrize("family", ["llava", "handvit"])
def test_no_name_and_no_metadata_decides_anything(family: str, normal: Normal) -> None:
    plain = described(normal(family), places=False)
    for seed in range(2):
        assert described(scrambled(normal(family), seed), places=False) == plain


def test_with_places_a_call_says_where_it_was_written(normal: Normal) -> None:
    decoder = described(normal("llava"))["stacks"][1]
    assert decoder["merge"]["module"] == "model.model"
    file, _, line = decoder["merge"]["line"].rpartition(":")
    assert file.endswith("modeling_llava.py") and "masked_scatter" in open(file).read()
    assert int(line) > 0
    merge = described(scrambled(normal("llava")))["stacks"][1]["merge"]
    assert (merge["module"], merge["line"]) == (None, None)


@pytest.mark.parametrize("seed", [1, 4, 5, 8, 9])
def test_a_random_model_is_what_its_spec_says(seed: int) -> None:
    spec = draw(seed)
    (stack,) = described(normalize(random_transformer.sample(seed).exported))["stacks"]
    assert [stack["role"], len(stack["layers"])] == ["vision", spec.depth]
    assert (stack["visual"], stack["protected"]) == (random_transformer.PATCHES, spec.prefix)
    assert stack["rows"] == random_transformer.PATCHES + spec.prefix
    for layer in stack["layers"]:
        assert (layer["heads"], layer["width"]) == (spec.heads, 12)
        assert layer["attention"] == ("fused" if spec.attention == "sdpa" else "explicit")
        assert (layer["keys"], layer["windows"]) == (stack["rows"], 1)


def test_a_program_without_stacks_is_described_and_has_no_budget() -> None:
    class Alone(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(rows, rows, rows)

    program = Program.of(normalize(export(Alone(), (torch.ones(1, 2, 5, 4),))))
    found = describe_program(program, analyse(program.main))
    assert (found["stacks"], found["budget"]) == ([], None)
    (other,) = found["other_attention"]
    assert (other["operator"], other["queries"], other["keys"]) == (
        "aten::scaled_dot_product_attention",
        5,
        5,
    )


class Windowed(nn.Module):
    """One layer whose windows are folded into the batch: ``[B,16,8] -> [4B,4,8]``, 2 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(3, 8), nn.Linear(8, 24)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        q, k, v = self.qkv(x).view(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + mixed.transpose(1, 2).reshape(pixels.shape[0], 16, 8)


def test_windows_folded_into_the_batch_are_counted() -> None:
    exported = export(Windowed().eval(), (torch.ones(2, 16, 3),))
    (stack,) = described(normalize(exported))["stacks"]
    (layer,) = stack["layers"]
    assert (stack["rows"], layer["windows"], layer["keys"]) == (16, 4, 4)
    assert (layer["heads"], layer["width"]) == (2, 4)


def test_a_group_is_described_with_its_shape_and_the_barrier_that_made_it() -> None:
    stack = described(normalize(grouped_vlm.build("pool").exported))["stacks"][0]
    for place in stack["sites"]:
        assert (place["group"], place["whole"], place["neighbours"]) == (4, [2, 2], False)
        assert place["barrier"] is None and place["grouped_by"]["operator"] == "aten::avg_pool2d"


def test_free_sizes_are_texts_with_bounds(normal: Normal) -> None:
    from testsuite.zoo import handvit

    program = Program.of(normalize(handvit.build(dynamic=True).exported))
    found = describe_program(program, analyse(program.main))
    assert found["sizes"] == {"s0": [1, 64]}
    assert found["inputs"] == [{"name": "images", "dtype": "f32", "shape": ["s0", 3, 48, 48]}]
    assert found["outputs"] == [{"dtype": "f32", "shape": ["s0", 10]}]
    assert {layer["heads"] for layer in found["stacks"][0]["layers"]} == {4}


def test_a_description_is_json(normal: Normal) -> None:
    program = Program.of(normal("qwen2_5_vl"), "model.pt2")
    found = describe_program(program, analyse(program.main))
    assert json.loads(json.dumps(found)) == found
    assert (found["schema_version"], found["source"], found["main"]) == (1, "model.pt2", "model")
