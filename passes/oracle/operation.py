"""Operation: one operator call as a rule of the oracle sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, fx

from tokopt.ir.dims import arguments_of, describe, operator_name
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.movement import ANY_LAYOUT
from tokopt.passes.oracle.dead import bare, dead_entries


@dataclass(frozen=True)
class Operation:
    """A call of ``node`` on values; ``given`` are the arguments by schema name, as passed.

    ``constant`` names the arguments that depend on no user input (weights, literals, factories);
    ``counts_rows`` says of a value's dim whether it counts rows of a stream.
    """

    node: fx.Node
    given: Mapping[str, Any]
    constant: frozenset[str]
    counts_rows: Callable[[fx.Node, int], bool]

    @property
    def name(self) -> str:
        """The operator's name without namespace and overload."""
        return operator_name(self.node).split("::")[-1]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument as passed (perhaps ``Marked``), or the schema's default."""
        if name in self.given:
            return self.given[name]
        for argument in self._schema():
            if argument.name == name and argument.has_default_value():
                return argument.default_value
        return default

    def tensor(self, name: str) -> Tensor | None:
        """Return a tensor argument without its mask, None where it is no tensor."""
        value = bare(self.get(name))
        return value if isinstance(value, Tensor) else None

    def dead(self, name: str) -> Tensor | None:
        """Return the dead entries of an argument."""
        return dead_entries(self.get(name))

    @property
    def main(self) -> str:
        """Name of the first argument: the tensor an operator is about."""
        return str(self._schema()[0].name)

    def run(self, instead: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """Call the operator as it is, on values without masks, some of them replaced."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        gap = False
        for argument in self._schema():
            if argument.name not in self.given and argument.name not in instead:
                gap = True
                continue
            value = instead.get(argument.name, self.given.get(argument.name))
            value = [bare(v) for v in value] if isinstance(value, (list, tuple)) else bare(value)
            if argument.kwarg_only or gap:
                kwargs[argument.name] = value
            else:
                args.append(value)
        target: Any = self.node.target
        return ANY_LAYOUT.get(target, target)(*args, **kwargs)

    def refuse(self, why: str, hint: str | None = None) -> UnsupportedError:
        """Return the error that says why the oracle cannot follow dropped rows through the call."""
        return UnsupportedError(
            f"the masked oracle cannot follow dropped tokens: {why}",
            where=describe(self.node),
            expected="tokens that are per row, attended to, or reduced as a set",
            hint=hint,
        )

    def _schema(self) -> Any:
        return self.node.target._schema.arguments  # type: ignore[union-attr]


def operation_of(
    node: fx.Node,
    args: Any,
    kwargs: Any,
    learned: frozenset[fx.Node],
    counts_rows: Callable[[fx.Node, int], bool],
) -> Operation:
    """Return the operation of a node on the values of its operands."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    constant = {
        name
        for name, value in arguments_of(node).items()
        if not isinstance(value, (fx.Node, list, tuple)) or value in learned
    }
    return Operation(node, given, frozenset(constant), counts_rows)
