from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import export

from tokopt.targets.calling import runner_of


class Nested(nn.Module):
    def forward(self, a: Tensor, pair: tuple[Tensor, int], *, named: Tensor) -> list[Tensor | None]:
        return [a - pair[0] * pair[1], None, named]


def test_inputs_by_name_reach_their_places_in_any_structure() -> None:
    ones = torch.ones(2)
    exported = export(Nested(), (ones, (ones + 1, 3)), {"named": ones + 2})
    run = runner_of(exported, ["difference", "same"])
    outputs = run({"named": ones * 5, "pair_0": ones, "a": ones * 10})
    assert outputs["difference"].tolist() == [7, 7] and outputs["same"].tolist() == [5, 5]
