"""Sample passes and a tiny program for the tests of the pass manager."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram, export

from tokopt.ir.program import Program
from tokopt.passes.base import Pass, PassResult
from tokopt.passes.normalize import normalize
from tokopt.passes.spec import NORMALIZED, Spec


class Tiny(nn.Module):
    """Linear, then twice relu."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(rows).relu().relu()


@cache
def tiny() -> Program:
    """Return the tiny program in normal form, made once; do not change it."""
    return Program.of(normalize(export(Tiny().eval(), (torch.ones(3, 4),))))


def edited(program: Program, edit: Callable[[fx.Graph], object]) -> Program:
    """Return a copy of a program with its main graph edited."""
    fresh: ExportedProgram = copy.copy(program.main)
    fresh._graph_module = copy.deepcopy(program.main.graph_module)
    edit(fresh._graph_module.graph)
    return program.with_main(fresh)


def second_relu_bypassed(graph: fx.Graph) -> None:
    """Make the first relu the result."""
    node = [n for n in graph.nodes if "relu" in str(n.target)][-1]
    node.replace_all_uses_with(node.args[0])
    node.args[0].name, name = node.name, node.name  # type: ignore[union-attr]
    graph.erase_node(node)
    graph.output_node().args[0][0].name = name  # type: ignore[union-attr,index]


@dataclass(frozen=True)
class DropRelu(Pass):
    """An honest pass: one of two relus is enough."""

    requires: ClassVar[tuple[Spec, ...]] = (NORMALIZED,)

    def run(self, program: Program) -> PassResult:
        relus = sum("relu" in str(node.target) for node in program.main.graph.nodes)
        if relus < 2:
            return PassResult(program, modified=False, remarks=("only one relu",))
        new = edited(program, second_relu_bypassed)
        return PassResult(new, modified=True, statistics={"relus": 1})


@dataclass(frozen=True)
class Nothing(Pass):
    """An honest pass that changes nothing."""

    def run(self, program: Program) -> PassResult:
        return PassResult(program, modified=False)


@dataclass(frozen=True)
class Settings(Pass):
    """A pass with every kind of option."""

    site: str
    keep: int
    ratio: float = 0.5
    exact: bool = False
    mode: Literal["full", "kept", "last"] = "full"
    budget: float | None = None
    free: int | float | bool | str | None = None
    depths: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    method_options: Mapping[str, int | float | str] = field(default_factory=dict)

    def run(self, program: Program) -> PassResult:
        return PassResult(program, modified=False)


KNOWN = {kind.name: kind for kind in (DropRelu, Nothing, Settings)}
