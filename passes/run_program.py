"""Run a program in torch on named inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from tokopt.ir.binding import bind
from tokopt.ir.precision import full_precision, with_full_inputs


def run_program(
    exported: ExportedProgram, inputs: Mapping[str, Tensor], *, full: bool = False
) -> list[Tensor]:
    """Run a program on named inputs in torch; ``full``: half dtypes are computed in fp32."""
    values = bind(exported, inputs)
    with torch.no_grad():
        if full:
            results = _FullPrecision(exported.graph_module).run(*with_full_inputs(exported, values))
            return list(full_precision(results))
        return list(fx.Interpreter(exported.graph_module).run(*values))


class _FullPrecision(fx.Interpreter):
    """Runs a graph with fp32 in place of every half dtype."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(target, full_precision(args), full_precision(kwargs))
