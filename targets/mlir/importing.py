"""Importing: the MLIR text of a program, by torch-mlir, with every weight an argument of ``main``.

torch-mlir's own entry copies weights into the text, and asks ``state_dict`` for buffers that
torch.export keeps among the constants (those that modules do not save): "Could not find state
mapping for buffer".  As arguments, neither happens, and a text of 7B stays small.

The text is parsed back and verified, and must print the same.  It is in the generic form, whose
grammar does not change between releases of MLIR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument

from tokopt.ir.dims import describe
from tokopt.ir.errors import InternalError, UnsupportedError
from tokopt.ir.rebuilt import copy_graph
from tokopt.targets.mlir.decompositions import OURS
from tokopt.targets.mlir.free_views import through_one_dim
from tokopt.targets.quiet import quiet

TO_TORCH = "builtin.module(torchdynamo-export-to-torch-backend-pipeline)"
FOREIGN = '"tm_tensor.'
"""torch-mlir's dialect for what it cannot say in others; nobody else reads it."""


@dataclass(frozen=True)
class Imported:
    """``text``: the module; ``arguments``: per argument of ``main`` its weight, or input's name."""

    text: str
    arguments: tuple[Tensor | str, ...]


def imported(exported: ExportedProgram, dialect: str) -> Imported:
    """Return ``main`` in a dialect: ``linalg-on-tensors``, ``stablehlo`` or ``tosa``.

    Raises ``UnsupportedError`` naming the operator, the node and the user's line.
    """
    from torch_mlir import ir
    from torch_mlir.dialects import torch as torch_dialect
    from torch_mlir.extras.fx_decomp_util import get_decomposition_table
    from torch_mlir.extras.fx_importer import FxImporter
    from torch_mlir.passmanager import PassManager

    for node in exported.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise _refusal(node, f"torch-mlir does not import loops ({node.target})")
    with quiet():
        plain = exported.run_decompositions(get_decomposition_table() | OURS)
    graph, arguments = _of_tensors(plain)
    through_one_dim(graph)
    context = ir.Context()
    context.enable_multithreading(False)  # a thread per core otherwise, for each program
    torch_dialect.register_dialect(context)
    try:
        importer = FxImporter(context=context)
        importer.import_stateless_graph(graph, func_name="main")
        with context:
            for pipeline in (
                TO_TORCH,
                f"builtin.module(torch-backend-to-{dialect}-backend-pipeline)",
            ):
                PassManager.parse(pipeline).run(importer.module.operation)
    except Exception as error:  # importer and passes raise whatever they meet
        raise _explained(graph, dialect, error) from error
    text = importer.module.operation.get_asm(print_generic_op_form=True)
    if FOREIGN in text:
        name = text.split(FOREIGN, 1)[1].split('"', 1)[0]
        raise UnsupportedError(
            f"torch-mlir has no {dialect} for an operator: it makes tm_tensor.{name} of it",
            hint="another dialect (--target mlir-stablehlo) or --target onnxruntime-cpu",
        )
    _parse_back(text)
    return Imported(text, arguments)


def _of_tensors(plain: ExportedProgram) -> tuple[fx.Graph, tuple[Tensor | str, ...]]:
    """Return a graph that takes and gives tensors only, and what each argument is."""
    graph, arguments = copy_graph(plain.graph), list[Tensor | str]()
    specs = plain.graph_signature.input_specs
    for spec, node in zip(specs, list(graph.find_nodes(op="placeholder")), strict=True):
        given = spec.kind is InputKind.USER_INPUT
        if not node.users and not (given and isinstance(spec.arg, TensorArgument)):
            graph.erase_node(node)
        elif given:
            arguments.append(str(spec.arg.name))
        else:
            name = str(spec.target)
            values = plain.state_dict if name in plain.state_dict else plain.constants
            arguments.append(values[name])
    (output,) = graph.find_nodes(op="output")
    specs_out = plain.graph_signature.output_specs
    output.args = (
        tuple(
            node
            for node, spec in zip(output.args[0], specs_out, strict=True)
            if isinstance(spec.arg, TensorArgument)
        ),
    )
    return graph, tuple(arguments)


def _explained(graph: fx.Graph, dialect: str, error: Exception) -> UnsupportedError:
    """Return what torch-mlir could not import, by the first call whose operator it names."""
    said = "; ".join([str(error), *(d.message for d in getattr(error, "error_diagnostics", ()))])
    for node in graph.nodes:
        if isinstance(node.target, OpOverload):
            name = f"torch.{node.target.name().replace('::', '.')}"
            if f'"{name}"' in said or f"'{name}'" in said:
                reason = f"torch-mlir does not take {node.target} to {dialect}"
                return _refusal(node, reason)
    found = list(getattr(error, "error_diagnostics", ()))
    reason = found[0].message.split(" that was")[0] if found else f"{type(error).__name__}: {error}"
    return UnsupportedError(
        f"torch-mlir does not take the program to {dialect}: {reason[:300]}",
        where=str(found[0].location) if found else None,
        hint="another dialect (mlir, mlir-stablehlo, mlir-tosa) or --target onnxruntime-cpu",
    )


def _refusal(node: fx.Node, reason: str) -> UnsupportedError:
    return UnsupportedError(reason, where=describe(node), hint="--target onnxruntime-cpu")


def _parse_back(text: str) -> None:
    """Parse, verify and print the text in a context of its own: the same must come out."""
    from torch_mlir import ir
    from torch_mlir._mlir_libs import _stablehlo
    from torch_mlir.dialects import torch as torch_dialect

    context: Any = ir.Context()
    context.enable_multithreading(False)
    torch_dialect.register_dialect(context)
    _stablehlo.register_dialect(context)
    try:
        module = ir.Module.parse(text, context)
    except Exception as error:  # MLIR's own kind, which has no base that says what it is
        raise InternalError(f"the MLIR written does not parse back: {error}") from error
    if (
        not module.operation.verify()
        or module.operation.get_asm(print_generic_op_form=True) != text
    ):
        raise InternalError("the MLIR written is another after parsing it back")
