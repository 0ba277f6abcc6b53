"""An exported program as a finished ONNX model: standard operators, stable names, no clutter."""

from __future__ import annotations

import onnx_ir
import torch
from onnx_ir.passes import common
from torch.export import ExportedProgram
from torch.onnx.errors import OnnxExporterError

from tokopt import __version__
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.tensors import tensor_inputs
from tokopt.targets.onnx.complex_pairs import in_pairs
from tokopt.targets.onnx.counted import count_rows
from tokopt.targets.onnx.decomposing import CallByCall
from tokopt.targets.onnx.grouped_query import with_grouped_query
from tokopt.targets.onnx.narrow import narrow_sorts
from tokopt.targets.onnx.operators import OPSET
from tokopt.targets.onnx.simplify import simplify
from tokopt.targets.onnx.torchlib_once import torchlib_once
from tokopt.targets.onnx.translations import TABLE
from tokopt.targets.onnx.whole_caches import with_whole_caches
from tokopt.targets.quiet import quiet
from tokopt.targets.signature import Signature
from tokopt.targets.symbols import symbol_names


def onnx_model(
    exported: ExportedProgram, signature: Signature, in_place: bool = False
) -> onnx_ir.Model:
    """Translate ``exported``; inputs, outputs and sizes are named as in ``signature``.

    ``in_place``: attention over whole caches is the operator that grows them where they lie.

    The same program gives the same model in every process.  Raises ``UnsupportedError`` naming
    the operator that ONNX cannot express.
    """
    with quiet(), torchlib_once():
        prepared = with_grouped_query(exported)
        prepared = with_whole_caches(prepared) if in_place else prepared
        try:
            program = torch.onnx.export(
                CallByCall(in_pairs(prepared)),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                custom_translation_table=TABLE,
                optimize=False,
            )
        except OnnxExporterError as error:
            raise UnsupportedError(
                f"the program does not translate to ONNX: {_first_cause(error)}",
                hint="another target, for example --target aotinductor",
            ) from error
    assert program is not None
    program.rename_axes({s: name for s, name in symbol_names(tensor_inputs(exported)).items()})
    model = program.model
    simplify(model)
    narrow_sorts(model)
    _name(model.graph, signature)
    # values are not followed: onnx takes all integers for shapes, and [n, 1] + [m] for an error
    common.ShapeInferencePass(data_prop=False)(model)
    _strip(model)
    count_rows(model)
    return model


def _name(graph: onnx_ir.Graph, signature: Signature) -> None:
    """Name inputs and outputs; inner values that happen to have such a name step aside."""
    taken = {spec.name for spec in (*signature.inputs, *signature.outputs)}
    for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value.name in taken:
                value.name = f"{value.name}__inner"
    for name in sorted(taken & set(graph.initializers)):
        weight = graph.initializers.pop(name)
        weight.name = f"{name}__weight"
        graph.initializers[weight.name] = weight
    specs = (*signature.inputs, *signature.outputs)
    for value, spec in zip((*graph.inputs, *graph.outputs), specs, strict=True):
        value.name = spec.name


def _strip(model: onnx_ir.Model) -> None:
    """Remove what is not part of the computation: stack traces, module paths, documentation."""
    model.producer_name, model.producer_version = "tokopt", __version__
    model.doc_string = None
    model.metadata_props.clear()
    graph = model.graph
    graph.doc_string = None
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None


def _first_cause(error: BaseException) -> str:
    """Return the first line of what started a chain of exceptions."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n", 1)[0]
