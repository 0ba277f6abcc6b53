"""Caches of a fixed length become caches that grow: what is recognised, and what it computes."""

from __future__ import annotations

import pytest
import torch
from testsuite.zoo.handvlm import Sizes
from testsuite.zoo.handvlm_static import static_parts
from torch import Tensor, nn
from torch.export import ExportedProgram

from tokopt.cli.inputs import example_inputs
from tokopt.ir.dims import operator_name
from tokopt.ir.tensors import tensor_inputs
from tokopt.passes.buffer_inputs import archived_inputs, in_common
from tokopt.passes.buffer_writes import find_writes
from tokopt.passes.buffers import grow_all, grow_buffers
from tokopt.passes.normalize import computes_alike, normalize
from tokopt.passes.validate import relative_difference, run_program
from tokopt.targets.signature import signature_of

SIZES = Sizes(layers=2, tower_layers=1, longest=64)
WIDTH, LENGTH = 8, 12
PUT = torch.ops.aten.index_put.default


@pytest.mark.parametrize("slot", ["position", "apart"])
def test_a_step_takes_rows_and_gives_one_more(slot: str) -> None:
    archived = static_parts(SIZES, slot=slot)
    grown = grow_all({name: normalize(graph) for name, graph in archived.items()})
    signature = signature_of(grown["decode"])
    shapes = {spec.name: spec.shape for spec in (*signature.inputs, *signature.outputs)}
    assert shapes["positions"] == (1, 1) and "slot" not in shapes
    first, second = "cache_0_dim2", "cache_2_dim2"  # each layer has a length of its own
    assert [shapes[f"cache_{i}"][2] for i in range(4)] == [first, first, second, second]
    assert shapes["output_1"][2] == f"{first} + 1"
    assert signature.ranges[first] == (1, SIZES.longest - 1)
    assert shapes["positions"] == (1, 1)
    for name in ("prefill", "decode"):
        given = example_inputs(grown[name])
        wanted = run_program(archived[name], archived_inputs(archived[name], grown[name], given))
        got = run_program(grown[name], given)
        pairs = [(in_common(a, b), b) for a, b in zip(wanted, got, strict=True)]
        assert max(relative_difference(a, b) for a, b in pairs) < 1e-5
        assert not computes_alike(grown[name])
    assert computes_alike(grown["vision"])
    assert "aten::index_copy" not in {operator_name(n) for n in grown["decode"].graph.nodes}


class Step(nn.Module):
    """One layer's step, its row written by one of several operators."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.project = form, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, place: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        row, index = self.project(x)[:, None], place.view(-1)
        if self.form == "index_put":
            written = PUT(cache, [None, None, index], row)
        elif self.form == "in place":
            written = cache.clone()
            written[:, :, index] = row
        elif self.form == "moved":
            written = cache.index_copy(2, index + 1, row)
        elif self.form == "added":
            written = PUT(cache, [None, None, index], row, True)
        elif self.form == "not given":
            written = cache.index_copy(2, index, row)
        else:
            written = cache.index_copy(2, index + torch.zeros(1, dtype=torch.int64), row)
        seen = torch.arange(LENGTH)[None, None, None] <= place
        rows = nn.functional.scaled_dot_product_attention(row, written, written, attn_mask=seen)
        return rows, (written[:, :, :3] if self.form == "not given" else written)


def step(form: str) -> ExportedProgram:
    given = (torch.randn(1, 1, WIDTH), torch.tensor(5), torch.randn(1, 1, LENGTH, WIDTH))
    with torch.no_grad():
        return normalize(torch.export.export(Step(form).eval(), given, strict=False))


@pytest.mark.parametrize("form", ["index_put", "in place", "index_copy"])
def test_every_way_to_write_a_row_is_the_same(form: str) -> None:
    archived = step(form)
    (write,) = find_writes(archived)
    assert (write.base.name, write.dim, write.slot.name) == ("cache", 2, "place")
    grown = grow_buffers(archived)
    names = [tensor.name for tensor in tensor_inputs(grown)]
    assert names == ["x", "cache"]  # the place says how many rows there are, no more
    for count in (1, 4, LENGTH - 1):
        given = {"x": torch.randn(1, 1, WIDTH), "cache": torch.randn(1, 1, count, WIDTH)}
        want = run_program(archived, archived_inputs(archived, grown, given))
        got = run_program(grown, given)
        assert got[1].shape[2] == count + 1
        assert all(
            torch.allclose(in_common(a, b), b, atol=1e-6) for a, b in zip(want, got, strict=True)
        )


@pytest.mark.parametrize("form", ["moved", "added", "not given"])
def test_other_writes_are_left_alone(form: str) -> None:
    archived = step(form)
    assert find_writes(archived) == [] and grow_all({"decode": archived})["decode"] is archived


def test_buffers_that_nobody_goes_on_with_are_given_as_they_are() -> None:
    archived = {n: normalize(g) for n, g in static_parts(SIZES).items() if n != "decode"}
    assert find_writes(archived["prefill"])
    assert grow_all(archived) == archived
