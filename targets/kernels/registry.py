"""Registry: every kernel of this package as a torch operator that export and Inductor see through.

A kernel's file has the name of the dialect operator it stands for, and holds a torch operator of
that name and signature.  On the CPU it is the dialect operator's reference.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import fx
from torch.export import ExportedProgram

from tokopt.ir.dialect import OPS
from tokopt.ir.rebuilt import copy_graph, rebuilt


@dataclass(frozen=True)
class Kernel:
    """``overload`` stands for the dialect operator ``name``; ``module`` launches it."""

    name: str
    module: ModuleType
    overload: Any


@cache
def kernels() -> dict[str, Kernel]:
    """Return the kernels by the dialect operator they stand for; imports Triton."""
    found = (m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]))
    names = [name for name in found if name in OPS]
    return {name: _kernel(name) for name in names}


def _kernel(name: str) -> Kernel:
    module = importlib.import_module(f"tokopt.targets.kernels.{name}")
    made = getattr(module, name)
    made.register_kernel("cpu")(OPS[name].reference)
    return Kernel(name, module, made._opoverload)


def with_kernels(exported: ExportedProgram) -> ExportedProgram:
    """Return the program with a kernel in the place of every dialect call that has one."""
    graph: fx.Graph = copy_graph(exported.graph)
    instead = {OPS[name].overload: kernel.overload for name, kernel in kernels().items()}
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = instead.get(node.target, node.target)
    return rebuilt(exported, graph)
