from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.export import Dim, ExportedProgram

from tokopt.targets.onnx.decomposing import CallByCall

aten = torch.ops.aten
MESHGRID = aten.meshgrid.indexing
TABLE = {**get_decompositions([aten.nan_to_num.default]), MESHGRID: MESHGRID.decompose}


class Clean(nn.Module):
    """Reads its sizes twice; has a view, and calls of the table: of one value, of several."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.meshgrid(x[0, :, 0], x[0, 0], indexing="ij")  # a list of views
        x = x + (first * second)[:, :1]
        wide = self.linear(x).nan_to_num(0.5).reshape(x.shape[0], x.shape[1], 2, 3)
        return wide.transpose(1, 2).reshape(x.shape[0], x.shape[1] * 6)


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clone().add_(1)


class Pools(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool1d(x.transpose(1, 2), 1)


def targets(exported: ExportedProgram) -> list[Any]:
    return [node.target for node in exported.graph.nodes if node.op == "call_function"]


@pytest.fixture(scope="module")
def clean() -> ExportedProgram:
    sizes = {0: Dim("batch", max=64), 1: Dim("length", max=64)}
    return torch.export.export(Clean(), (torch.randn(3, 5, 4),), dynamic_shapes=(sizes,))


def test_calls_of_the_table_and_views_are_replaced_and_the_same_is_computed(
    clean: ExportedProgram,
) -> None:
    before = targets(clean)
    replaced = {aten.nan_to_num.default, aten.reshape.default, MESHGRID}
    assert replaced <= set(before)
    taken = CallByCall(clean).run_decompositions(TABLE)
    after = targets(taken)
    assert not replaced & set(after)
    assert aten.linear.default in after, "what the table lacks stays"
    assert targets(clean) == before, "the program itself is as it was"
    x = torch.randn(7, 9, 4)
    x[1, 0] = torch.nan
    wanted = clean.module()(x)
    assert not wanted.isnan().any() and torch.equal(taken.module()(x), wanted)


def test_every_size_is_computed_once(clean: ExportedProgram) -> None:
    nodes = CallByCall(clean).run_decompositions(TABLE).graph.nodes
    values = (n.meta["val"] for n in nodes if n.op == "call_function")
    sizes = [str(value) for value in values if isinstance(value, torch.SymInt)]
    assert len(sizes) == len(set(sizes)) >= 2


def test_inputs_keep_names_that_python_has_too_and_outputs_are_found_again() -> None:
    class Swaps(nn.Module):
        def forward(self, input: Tensor, hash: Tensor) -> tuple[Tensor, Tensor]:
            return hash.nan_to_num(0.0), input

    exported = torch.export.export(Swaps(), (torch.zeros(2), torch.ones(2)))
    taken = CallByCall(exported).run_decompositions(TABLE)
    assert taken.graph_signature.user_inputs == ("input", "hash")
    one, zero = taken.module()(torch.zeros(2), torch.ones(2))
    assert torch.equal(one, torch.ones(2)) and torch.equal(zero, torch.zeros(2))


@pytest.mark.parametrize("module", [Writes(), Pools()])
def test_what_writes_or_is_made_of_writes_is_made_functional_first(module: nn.Module) -> None:
    x = torch.randn(2, 3, 4)
    exported = torch.export.export(module, (x,))
    pool = aten.adaptive_avg_pool1d.default
    taken = CallByCall(exported).run_decompositions(
        {pool: torch.export.default_decompositions()[pool]}
    )
    assert pool not in targets(taken)
    assert not any(target._schema.is_mutable for target in targets(taken))
    assert torch.equal(taken.module()(x), module(x))
