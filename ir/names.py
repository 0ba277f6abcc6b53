"""Names: how values and sizes of a graph are called in print, whatever torch called them.

torch numbers nodes as it makes and drops them, and derives symbols from input names; both differ
from run to run of the same model.  Here calls are numbered per operator in graph order
(``%add_0``), symbols in order of appearance (``s0``), and parameters and inputs keep the user's
names, or with ``anonymous`` only kind and position (``%parameter_3``).
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec

from tokopt.ir.lengths import Length, length_of

KINDS = {
    InputKind.USER_INPUT: "input",
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
    InputKind.CUSTOM_OBJ: "object",
    InputKind.TOKEN: "token",
}


class Names:
    """Printed names of one graph's nodes and symbols."""

    def __init__(self, exported: ExportedProgram, *, anonymous: bool = False) -> None:
        self.specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
        self._nodes: dict[fx.Node, str] = {}
        self._symbols: dict[sympy.Symbol, sympy.Symbol] = {}
        taken: set[str] = set()
        counts: Counter[str] = Counter()
        calls = []
        for node in exported.graph.nodes:
            for size in sizes_of(node.meta.get("val")):
                self._learn(length_of(size))
            if node.op != "placeholder":
                calls.append(node)
                continue
            spec = self.specs.get(node.name)
            name = None if anonymous or spec is None else given_name(spec)
            if name is None or name in taken:
                kind = KINDS[spec.kind] if spec is not None else "input"
                name = _numbered(kind, counts, taken)
            taken.add(name)
            self._nodes[node] = name
        for node in calls:
            self._nodes[node] = _numbered(_base(node), counts, taken)

    def within(self, body: fx.Graph) -> Names:
        """Return the names in the body of a loop: its own values, this graph's symbols."""
        inner = copy.copy(self)
        inner._nodes, inner.specs = {}, {}
        counts, taken = Counter[str](), set[str]()
        for node in body.nodes:
            for size in sizes_of(node.meta.get("val")):
                self._learn(length_of(size))
            base = "given" if node.op == "placeholder" else _base(node)
            inner._nodes[node] = _numbered(base, counts, taken)
        return inner

    def node(self, node: fx.Node) -> str:
        """Return ``%name`` of a value; names with odd characters are quoted."""
        name = self._nodes.get(node, f"{node.name} (not in the graph)")
        return f"%{name}" if re.fullmatch(r"[\w.]+", name) else f"%{json.dumps(name)}"

    @property
    def symbols(self) -> dict[sympy.Symbol, str]:
        """The graph's symbols, in order of appearance, with their printed names."""
        return {symbol: printed.name for symbol, printed in self._symbols.items()}

    def length(self, length: Length) -> str:
        """Return a length as text: ``37`` or ``s0 + 36``."""
        if isinstance(length, int):
            return str(length)
        self._learn(length)
        return str(length.xreplace(self._symbols))

    def readable(self, text: str) -> str:
        """Return a message with torch's symbols replaced by the printed ones."""
        known = {symbol.name: printed.name for symbol, printed in self._symbols.items()}
        return re.sub(r"\b[a-z]+\d+\b", lambda found: known.get(found[0], found[0]), text)

    def _learn(self, length: Length) -> None:
        if isinstance(length, int):
            return
        for symbol in sorted(length.free_symbols - self._symbols.keys(), key=str):
            letter = str(symbol)[0]
            number = sum(printed.name[0] == letter for printed in self._symbols.values())
            printed = sympy.Symbol(f"{letter}{number}", **symbol.assumptions0)
            self._symbols[symbol] = printed


def sizes_of(value: Any) -> Iterator[Any]:
    """Yield every size in a node's recorded value."""
    if isinstance(value, torch.Tensor):
        yield from value.shape
    elif isinstance(value, torch.SymInt):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from sizes_of(item)


def given_name(spec: InputSpec) -> str:
    """Return what the user calls an input, parameter or buffer."""
    return str(spec.target if spec.target is not None else spec.arg.name)


def _base(node: fx.Node) -> str:
    """Return the operator's own name, without namespace and overload."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return str(schema.name.rpartition("::")[2])
    if node.op == "output":
        return "output"
    return str(getattr(node.target, "__name__", node.op))


def _numbered(base: str, counts: Counter[str], taken: set[str]) -> str:
    for number in itertools.count(counts[base]):
        if (name := f"{base}_{number}") not in taken:
            counts[base] = number + 1
            return name
    raise AssertionError("itertools.count ended")
