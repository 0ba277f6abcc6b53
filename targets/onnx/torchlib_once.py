"""What torch's ONNX exporter makes again and again, made once in a process.

- Its table of translations reads the signatures of about 500 functions in every export: 0.45
  processor seconds, as much as translating a small program.
- The signature of an ONNX operator is read off its schema for every call: 0.1 ms, about 3000
  times for a small language model.

Sound: the table depends on the opset and on the operators that torch knows (more once a library was
imported), and every export gets a copy, so what one registers does not reach another.  A standard
operator of one version has one schema, and the exporter only reads signatures; operators of other
domains are left alone.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from onnx.defs import OpSchema
from onnx_ir.schemas import OpSignature
from torch.onnx._internal.exporter._registration import ONNXRegistry

_make_table = ONNXRegistry.from_torchlib
_read_signature = OpSignature.from_op_schema
_signatures: dict[tuple[str, int], OpSignature] = {}


@functools.lru_cache(maxsize=2)
def _made(opset_version: int, known: frozenset[str]) -> ONNXRegistry:
    return _make_table(opset_version=opset_version)


def _table(opset_version: int) -> ONNXRegistry:
    made = _made(opset_version, frozenset(torch._C._dispatch_get_all_op_names()))
    table = copy.copy(made)
    table.functions = {operator: list(found) for operator, found in made.functions.items()}
    return table


def _signature(op_schema: OpSchema) -> OpSignature:
    if op_schema.domain:
        return _read_signature(op_schema)
    key = (op_schema.name, op_schema.since_version)
    if key not in _signatures:
        _signatures[key] = _read_signature(op_schema)
    return _signatures[key]


@contextmanager
def torchlib_once() -> Iterator[None]:
    """Let exports in the block use the table and the signatures of earlier ones."""
    with (
        patch.object(ONNXRegistry, "from_torchlib", staticmethod(_table)),
        patch.object(OpSignature, "from_op_schema", staticmethod(_signature)),
    ):
        yield
