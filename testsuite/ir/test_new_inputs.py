"""A new free size is none that the program has: torch numbers symbols by a hash of 100 values."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import Dim

from tokopt.ir.lengths import length_of
from tokopt.ir.load import load
from tokopt.ir.new_inputs import new_size
from tokopt.ir.program import Program
from tokopt.ir.save import save
from tokopt.ir.trace import fake_mode_of

NUMBERS = 100


class Rows(torch.nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return torch.cat([first, second], 1).sum()


def test_new_sizes_of_a_loaded_program_are_new(tmp_path: Path) -> None:
    shapes = {"first": {0: Dim("batch"), 1: Dim("left")}, "second": {0: Dim("batch"), 1: Dim("r")}}
    given = (torch.zeros(3, 4), torch.zeros(3, 5))
    save(
        Program({"main": torch.export.export(Rows(), given, dynamic_shapes=shapes)}),
        tmp_path / "a.pt2",
    )
    (graph,) = load(tmp_path / "a.pt2").graphs.values()
    own = {symbol for symbol in graph.range_constraints}
    mode = fake_mode_of(graph.graph)
    made = [length_of(new_size(mode, f"size {number}")) for number in range(NUMBERS)]
    assert len(own) == 3 and len(set(made)) == NUMBERS
    assert not own & set(made)
