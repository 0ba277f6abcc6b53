"""torch's table of ONNX translations, made once in a process instead of once in an export.

``torch.onnx.export`` reads the signatures of about 500 functions every time: 0.45 processor
seconds, as much as translating a small program, and an artifact has up to a dozen programs.

Sound: the table depends on the opset alone, and every export gets a copy, so what one registers
does not reach another.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch.onnx._internal.exporter._registration import ONNXRegistry

_make = ONNXRegistry.from_torchlib


@functools.cache
def _made(opset_version: int) -> ONNXRegistry:
    return _make(opset_version=opset_version)


def _copied(opset_version: int) -> ONNXRegistry:
    made = _made(opset_version)
    table = copy.copy(made)
    table.functions = {operator: list(found) for operator, found in made.functions.items()}
    return table


@contextmanager
def torchlib_once() -> Iterator[None]:
    """Let exports in the block use the table that the first one made."""
    with patch.object(ONNXRegistry, "from_torchlib", staticmethod(_copied)):
        yield
