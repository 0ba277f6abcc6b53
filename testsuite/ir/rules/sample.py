"""One call of one operator on real tensors, and the graph that has just this call."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from tokopt.ir.dims import Dims, infer_dims

RANDOM = torch.Generator().manual_seed(0)


def real(*shape: int) -> Tensor:
    """Distinct numbers between 0.1 and 0.9: inside the domain of every function of the table."""
    return torch.rand(shape, dtype=torch.float64, generator=RANDOM) * 0.8 + 0.1


def whole(*shape: int, below: int = 8) -> Tensor:
    return torch.randint(0, below, shape, generator=RANDOM)


def truth(*shape: int) -> Tensor:
    return torch.rand(shape, generator=RANDOM) > 0.5


@dataclass(frozen=True)
class Sample:
    """A call: operands of a rule are the tensors among its arguments, each a value of its own.

    ``random``: the result is not a function of the operands; only what is said of dims counts.
    ``ordered``: rows are compared by order, so that taking rows away is lawful, permuting not.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    random: bool = False
    ordered: bool = False

    @property
    def name(self) -> str:
        return self.target._schema.name

    def __str__(self) -> str:
        sizes = ["x".join(map(str, t.shape)) or "()" for t in self.tensors()]
        return f"{self.target}({', '.join(sizes)})"

    def tensors(self) -> list[Tensor]:
        """The operands, each once, in order."""
        found: dict[int, Tensor] = {}
        torch.utils._pytree.tree_map_only(
            Tensor, lambda t: found.setdefault(id(t), t), (self.args, self.kwargs)
        )
        return list(found.values())

    def run(self, given: list[Tensor]) -> list[Any]:
        """Call the operator on other tensors in place of the operands; results as a list."""
        result = self._call({id(t): g.clone() for t, g in zip(self.tensors(), given, strict=True)})
        return list(result) if isinstance(result, (list, tuple)) else [result]

    def _call(self, given: dict[int, Any]) -> Any:
        args, kwargs = self._with(given)
        return self.target(*args, **kwargs)

    def _with(self, given: dict[int, Any]) -> Any:
        return torch.utils._pytree.tree_map_only(
            Tensor, lambda t: given[id(t)], (self.args, self.kwargs)
        )

    def infer(self) -> tuple[Dims, fx.Node, list[fx.Node]]:
        """Infer the dims of the one-call graph: also the call's node and its operands' nodes."""
        graph = fx.Graph()
        nodes: dict[int, fx.Node] = {}
        for tensor in self.tensors():
            nodes[id(tensor)] = graph.placeholder(f"x{len(nodes)}")
            nodes[id(tensor)].meta["val"] = tensor
        node = graph.call_function(self.target, *self._with(nodes))
        node.meta["val"] = self._call({id(t): t.clone() for t in self.tensors()})
        operands = list(nodes.values())
        return infer_dims(one_call(graph, operands)), node, operands


def one_call(graph: fx.Graph, inputs: list[fx.Node]) -> ExportedProgram:
    """Return what ``infer_dims`` reads of an exported program whose inputs are all the user's."""
    specs = [
        SimpleNamespace(kind=InputKind.USER_INPUT, arg=SimpleNamespace(name=n.name)) for n in inputs
    ]
    signature = SimpleNamespace(input_specs=specs)
    return cast(ExportedProgram, SimpleNamespace(graph=graph, graph_signature=signature))


def call(target: Any, *args: Any, **kwargs: Any) -> Sample:
    return Sample(target, args, kwargs)


def rolled(target: Any, *args: Any, **kwargs: Any) -> Sample:
    """A call whose result is random or uninitialised."""
    return Sample(target, args, kwargs, random=True)


def ordered(target: Any, *args: Any, **kwargs: Any) -> Sample:
    """A call that compares its rows' order (a causal mask)."""
    return Sample(target, args, kwargs, ordered=True)
