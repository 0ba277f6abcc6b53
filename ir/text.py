"""Text: a program in print, one node a line; the form that tests, dumps and diffs read.

::

    graph model {
      s0 in [1, 64]
      %images : f32[s0, 3, 48, 48] = input
      %head.weight : f32[10, 48] = parameter
      ...
      %linear_16 : f32[s0, 10] = aten.linear(%select_0, %head.weight, %head.bias)
      return %linear_16
    }

A loop's body stands in front of the loop, in braces.  Equal programs print equally whatever torch
numbered their nodes (``names.py``).  With ``anonymous`` the print does not depend on the names of
modules, parameters and inputs either: they are printed by kind and position.  Module
paths and stack traces are never printed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from tokopt.ir.lengths import length_of
from tokopt.ir.names import KINDS, Names
from tokopt.ir.program import Program

_DTYPES = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


def print_program(program: Program, *, anonymous: bool = False) -> str:
    """Return every graph of a program in print, in the archive's order."""
    return "\n".join(
        print_graph(exported, name, anonymous=anonymous)
        for name, exported in program.graphs.items()
    )


def print_graph(exported: ExportedProgram, name: str = "model", *, anonymous: bool = False) -> str:
    """Return one graph in print; ends with a newline."""
    names = Names(exported, anonymous=anonymous)
    lines = [f"graph {name} {{"]
    for symbol, printed in names.symbols.items():
        if symbol in exported.range_constraints:
            known = exported.range_constraints[symbol]
            lines.append(f"  {printed} in [{known.lower}, {known.upper}]")
    for node in exported.graph.nodes:
        body = body_of(node)
        lines += _body(node, body, names) if body is not None else []
        if node.op != "output" and body is None:
            lines.append(f"  {print_node(node, names)}")
    lines += [f"  {line}" for line in _results(exported, names, anonymous)]
    return "\n".join([*lines, "}"]) + "\n"


def body_of(node: fx.Node) -> fx.Graph | None:
    """Return the graph that a node stands for: the body of a loop; None for other nodes."""
    if node.op != "get_attr":
        return None
    held = getattr(node.graph.owning_module, str(node.target), None)
    return held.graph if isinstance(held, fx.GraphModule) else None


def _body(node: fx.Node, body: fx.Graph, names: Names) -> list[str]:
    """Return the lines of a loop's body, two deeper than its graph."""
    inner = names.within(body)
    lines = [f"  {names.node(node)} = body {{"]
    for own in body.nodes:
        if own.op == "output":
            (value,) = own.args
            values = value if isinstance(value, (list, tuple)) else (value,)
            lines.append(f"    return {', '.join(_argument(v, inner) for v in values)}")
        elif (deeper := body_of(own)) is not None:
            lines += [f"  {line}" for line in _body(own, deeper, inner)]
        else:
            lines.append(f"    {print_node(own, inner)}")
    return [*lines, "  }"]


def print_node(node: fx.Node, names: Names) -> str:
    """Return ``%name : type = what`` of one node."""
    known = print_type(node.meta["val"], names) if "val" in node.meta else "?"
    head = f"{names.node(node)} : {known} = "
    if node.op == "placeholder":
        spec = names.specs.get(node.name)
        if spec is None:
            return head + "input"
        temporary = spec.kind is InputKind.BUFFER and not spec.persistent
        return head + KINDS[spec.kind] + (" (not saved)" if temporary else "")
    arguments = [_argument(a, names) for a in node.args]
    arguments += [f"{key}={_argument(value, names)}" for key, value in node.kwargs.items()]
    if node.op != "call_function":
        return head + f"{node.op} {json.dumps(str(node.target))}({', '.join(arguments)})"
    return head + f"{operator_text(node.target)}({', '.join(arguments)})"


def print_type(value: Any, names: Names) -> str:
    """Return ``f32[1, 37, 64]``, ``(f32[2], i64[2])``, ``int s0``, ``()`` for nothing."""
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(names.length(length_of(size)) for size in value.shape)
        place = "" if value.device.type == "cpu" else f"@{value.device}"
        return f"{dtype_text(value.dtype)}[{sizes}]{place}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(print_type(item, names) for item in value)})"
    if isinstance(value, torch.SymInt):
        return f"int {names.length(length_of(value))}"
    if isinstance(value, (torch.SymFloat, torch.SymBool)):
        return type(value).__name__.removeprefix("Sym").lower()
    if isinstance(value, (bool, int, float, str)):
        return f"{type(value).__name__} {json.dumps(value)}"
    return "()" if value is None else type(value).__name__


def operator_text(target: Any) -> str:
    """Return ``aten.add.Tensor``, ``aten.linear`` (the default overload), ``operator.mul``."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removesuffix(".default")
    module, name = getattr(target, "__module__", ""), getattr(target, "__name__", str(target))
    return f"operator.{name}" if module == "_operator" else f"{module}.{name}"


def dtype_text(dtype: torch.dtype) -> str:
    """Return ``f32``, ``bf16``, ``i64``, ``bool``."""
    name = str(dtype).removeprefix("torch.")
    stem = name.rstrip("0123456789")
    return _DTYPES[stem] + name[len(stem) :] if stem in _DTYPES else name


def _argument(value: Any, names: Names) -> str:
    if isinstance(value, fx.Node):
        return names.node(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_argument(item, names) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {_argument(v, names)}' for k, v in value.items())}}}"
    if isinstance(value, torch.SymInt):
        return names.length(length_of(value))
    if isinstance(value, torch.dtype):
        return dtype_text(value)
    if isinstance(value, (torch.layout, torch.memory_format)):
        return str(value).removeprefix("torch.")
    if isinstance(value, str):
        return json.dumps(value)
    return str(value)


def _results(exported: ExportedProgram, names: Names, anonymous: bool) -> Iterator[str]:
    """Yield what the graph writes back (buffers, inputs), then what it returns."""
    values = exported.graph.output_node().args[0]
    returned = []
    for spec, value in zip(exported.graph_signature.output_specs, values, strict=False):
        text = _argument(value, names)
        if spec.kind is OutputKind.USER_OUTPUT:
            returned.append(text)
            continue
        target = "" if anonymous or spec.target is None else f" {spec.target}"
        yield f"{spec.kind.name.lower().replace('_', ' ')}{target} = {text}"
    yield f"return {', '.join(returned)}".rstrip()
