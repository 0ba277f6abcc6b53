"""Describe: what a graph's facts are, as plain data; the tables and the JSON both show this.

Lengths are integers, or texts such as ``s0 + 36`` where a size is free.  Values are named as in
``tokopt.ir.text`` (``%add_3``).  With ``places=False`` nothing in it depends on the names of
modules, parameters and inputs, nor on metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from tokopt.cli.describe_call import describe_call, describe_length
from tokopt.cli.describe_stack import describe_stack
from tokopt.cli.several import describe_links
from tokopt.ir.axis import Axis, locate
from tokopt.ir.facts import Facts
from tokopt.ir.layers import Layer
from tokopt.ir.lengths import length_of
from tokopt.ir.names import Names, given_name
from tokopt.ir.program import Program
from tokopt.ir.text import dtype_text

SCHEMA = 1


def describe_program(
    program: Program,
    facts: Facts,
    joined: Sequence[str] = (),
    links: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a program and the facts of its main graph: the object that ``--json`` prints.

    ``joined`` names the programs that ``facts`` is about where they are several, ``links`` is what
    ``describe_links`` says of them.
    ``sizes`` are the free sizes with their least and greatest value (None: unbounded).
    """
    main, names = facts.exported, Names(facts.exported)
    ranges = {
        printed: [_bound(known.lower), _bound(known.upper)]
        for symbol, printed in names.symbols.items()
        if (known := main.range_constraints.get(symbol)) is not None
    }
    return {
        "schema_version": SCHEMA,
        "source": program.source,
        "graphs": {name: len(exported.graph.nodes) for name, exported in program.graphs.items()},
        "main": program.main_name,
        "joined": list(joined) or [program.main_name],
        **(links or describe_links(program.graphs)),
        "sizes": ranges,
        "inputs": _inputs(main, names),
        "outputs": _outputs(main, names),
        **describe_facts(facts),
    }


def describe_facts(facts: Facts, *, places: bool = True) -> dict[str, Any]:
    """Return the token axes, layers, sites and the budget axis of a graph.

    ``stacks`` are in graph order; ``other_attention`` is what belongs to no stack; ``budget`` is
    None where no stack carries visual tokens.
    """
    names = Names(facts.exported, anonymous=not places)
    inside = {a.node for s in facts.stacks for layer in s.stack.layers for a in layer.attention}
    outside = [a for a in facts.attention if a.node not in inside]
    return {
        "stacks": [describe_stack(stack, facts.dims, names, places) for stack in facts.stacks],
        "other_attention": [
            {
                **describe_call(a.node, names, places),
                "queries": describe_length(a.queries.root.length, names),
                "keys": describe_length(a.keys.root.length, names),
            }
            for a in outside
        ],
        "budget": _budget(facts, names),
    }


def _budget(facts: Facts, names: Names) -> dict[str, Any] | None:
    """Return the axis that budgets count: the consumer's layers whose keys hold visual rows."""
    if not any(stack.role in ("decoder", "vision") for stack in facts.stacks):
        return None
    consumer = facts.consumer
    tokens = consumer.tokens
    counted = [x.depth for x in consumer.stack.layers if _holds(x, tokens)]
    return {
        "stack": consumer.role,
        "visual": describe_length(consumer.count, names),
        "layers": counted,
    }


def _holds(layer: Layer, tokens: Axis) -> bool:
    """Return whether a layer's keys are rows of the token axis, all of them or those of windows."""
    return layer.windowed or any(locate(a.keys, tokens) is not None for a in layer.attention)


def _inputs(exported: ExportedProgram, names: Names) -> list[dict[str, Any]]:
    nodes = {node.name: node for node in exported.graph.find_nodes(op="placeholder")}
    given = [s for s in exported.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    return [
        {"name": given_name(spec), **_value(nodes[spec.arg.name].meta.get("val"), names)}
        for spec in given
    ]


def _outputs(exported: ExportedProgram, names: Names) -> list[dict[str, Any]]:
    specs = exported.graph_signature.output_specs
    values = exported.graph.output_node().args[0]
    return [
        _value(value.meta.get("val") if isinstance(value, fx.Node) else value, names)
        for spec, value in zip(specs, values, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT
    ]


def _value(value: Any, names: Names) -> dict[str, Any]:
    if isinstance(value, Tensor):
        shape = [describe_length(length_of(size), names) for size in value.shape]
        return {"dtype": dtype_text(value.dtype), "shape": shape}
    return {"dtype": type(value).__name__, "shape": None}


def _bound(value: Any) -> int | None:
    return int(value) if getattr(value, "is_Integer", isinstance(value, int)) else None
