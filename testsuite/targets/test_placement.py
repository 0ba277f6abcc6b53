"""A program moved to another device is a second one: what was given stays as it was."""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.targets.placement import on_device


class Positions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(8, 4)
        self.register_buffer("offset", torch.arange(3))

    def forward(self, x: Tensor) -> Tensor:
        ramp = torch.arange(3)
        return x + self.table(ramp + self.offset) + torch.zeros_like(x)


def devices(exported: torch.export.ExportedProgram) -> set[str]:
    values = [node.meta.get("val") for node in exported.graph.nodes]
    return {value.device.type for value in values if isinstance(value, Tensor)}


def test_everything_a_program_makes_and_holds_moves_and_the_given_one_stays() -> None:
    given = (torch.randn(3, 4),)
    plain = torch.export.export(Positions(), given)
    code, expected = plain.graph_module.code, plain.module()(*given)

    moved = on_device(plain, "meta")

    assert {t.device.type for t in moved.state_dict.values()} == {"meta"}
    assert {t.device.type for t in plain.state_dict.values()} == {"cpu"}
    assert "cpu" not in moved.graph_module.code
    assert devices(moved) == {"meta"} and devices(plain) == {"cpu"}
    assert plain.graph_module.code == code
    assert torch.equal(plain.module()(*given), expected)
