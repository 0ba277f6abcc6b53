"""Structure: what must hold of every graph between passes, whoever made it.

``structural_faults``: fx's own lint; only placeholders, calls and one output; the signature names
what is there; every call has its value recorded, and it is the one the operator gives
(``shapes.py``).  ``normal_faults``: what the normal form promises besides: nothing written in
place, nothing computed for nobody.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from tokopt.ir.dims import describe
from tokopt.ir.shapes import shape_faults

STORED = frozenset({InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR})


def structural_faults(exported: ExportedProgram) -> tuple[str, ...]:
    """Return every violation in words, each naming its node; empty where the graph is sound."""
    return (*_lint_faults(exported), *_signature_faults(exported), *shape_faults(exported))


def normal_faults(exported: ExportedProgram) -> tuple[str, ...]:
    """Return what keeps a graph from being in normal form: functional, and nothing dead."""
    faults = []
    for node in exported.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            faults.append(f"{describe(node)}: writes to its operand in place")
        elif node.op == "call_function" and not node.users:
            faults.append(f"{describe(node)}: nobody reads its result")
    return tuple(faults)


def _lint_faults(exported: ExportedProgram) -> Iterator[str]:
    try:
        exported.graph.lint()
    except (RuntimeError, ValueError, TypeError) as error:
        yield f"fx.Graph.lint: {error}"
    for node in exported.graph.nodes:
        if node.op not in ("placeholder", "call_function", "output", "get_attr"):
            yield f"{describe(node)}: a {node.op} has no place in an exported graph"


def _signature_faults(exported: ExportedProgram) -> Iterator[str]:
    signature = exported.graph_signature
    placeholders = [node.name for node in exported.graph.find_nodes(op="placeholder")]
    named = [spec.arg.name for spec in signature.input_specs]
    if placeholders != named:
        odd = next(
            (
                f"{a!r} where the signature says {b!r}"
                for a, b in zip(placeholders, named, strict=False)
                if a != b
            ),
            f"{len(placeholders)} where the signature has {len(named)}",
        )
        yield f"placeholders: {odd}"
    for spec in signature.input_specs:
        held = spec.target in exported.state_dict or spec.target in exported.constants
        if spec.kind in STORED and not held:
            yield f"{spec.arg.name}: the program holds no {spec.kind.name.lower()} {spec.target!r}"
    results = exported.graph.output_node().args[0]
    if not isinstance(results, (list, tuple)) or len(results) != len(signature.output_specs):
        yield f"output: {results} for {len(signature.output_specs)} results in the signature"
        return
    for result, spec in zip(results, signature.output_specs, strict=True):
        name = result.name if isinstance(result, fx.Node) else None
        wanted = getattr(spec.arg, "name", None)
        if isinstance(result, fx.Node) and name != wanted:
            yield f"output: {name} where the signature says {wanted!r}"
        elif not isinstance(result, fx.Node) and spec.kind is not OutputKind.USER_OUTPUT:
            yield f"output: {result!r} is no value, and the signature wants {wanted!r}"
