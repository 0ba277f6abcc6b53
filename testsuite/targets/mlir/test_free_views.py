"""Views with free sizes give the same rows, in the graph and through IREE: 1 s, with IREE 5 s."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim, ExportedProgram

from tokopt.ir.rebuilt import copy_graph
from tokopt.targets.mlir.free_views import through_one_dim

view = torch.ops.aten.view.default


class Views(torch.nn.Module):
    """Every kind that a rewritten program has: flattening, splitting, both, and through others."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch, rows, _ = x.shape
        heads = x.view(batch, rows, 4, 2)
        mixed = heads.permute(0, 2, 1, 3).reshape(batch * 4, rows, 2)
        back = mixed.view(batch, -1, rows, 2).transpose(1, 2).reshape(batch, rows, 8)
        return x.view(-1, 8), heads, mixed, back, x.view(batch, -1), x.view(batch * rows, 2, -1)


def exported() -> ExportedProgram:
    sizes = {0: Dim("batch", min=1, max=8), 1: Dim("rows", min=2, max=64)}
    free = torch.export.export(Views(), (torch.ones(2, 5, 8),), dynamic_shapes=(sizes,))
    return free.run_decompositions({})


def test_a_view_with_a_free_size_goes_through_one_dim_and_a_fixed_one_does_not() -> None:
    free = exported()
    graph = copy_graph(free.graph)
    views = len(graph.find_nodes(op="call_function", target=view))
    assert through_one_dim(graph) == views > 4
    assert len(graph.find_nodes(op="call_function", target=view)) == 2 * views
    assert through_one_dim(graph) == 0
    x = torch.randn(3, 7, 8)
    got = torch.fx.Interpreter(torch.fx.GraphModule({}, graph)).run(x)
    assert all(torch.equal(a, b) for a, b in zip(got, Views()(x), strict=True))
    fixed = torch.export.export(Views(), (x,)).run_decompositions({})
    assert fixed.graph.find_nodes(op="call_function", target=view)
    assert through_one_dim(copy_graph(fixed.graph)) == 0


@pytest.mark.needs_mlir
def test_iree_gives_the_rows_that_torch_gives_at_every_size() -> None:
    from tokopt.targets.mlir.importing import imported
    from tokopt.targets.mlir.iree import compiled

    run = compiled(imported(exported(), "linalg-on-tensors").text, "none")
    for batch, rows in ((1, 2), (1, 9), (3, 7)):
        x = torch.randn(batch, rows, 8)
        for got, want in zip(run([x]), Views()(x), strict=True):
            assert torch.equal(got, want)
