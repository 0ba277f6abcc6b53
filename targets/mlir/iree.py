"""IREE: MLIR text compiled for this machine's CPU and run, to compare it with torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokopt.ir.errors import InputError, InternalError

OPTIONS = ("--iree-llvmcpu-target-cpu=host",)


def compiled(text: str, input_type: str) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Return ``main`` of a module as a function of CPU tensors; compiling takes seconds.

    Raises ``InputError`` for text that IREE does not compile.
    """
    import iree.compiler
    import iree.runtime

    try:
        code = iree.compiler.compile_str(
            text,
            input_type=input_type,
            target_backends=["llvm-cpu"],
            extra_args=list(OPTIONS),
        )
        context: Any = iree.runtime.SystemContext(config=iree.runtime.Config("local-sync"))
        context.add_vm_module(iree.runtime.VmModule.copy_buffer(context.instance, code))
        main = context.modules.module.main
    except Exception as error:  # the tool's and the runtime's errors share no base
        said = next((s for s in str(error).splitlines() if "error:" in s), str(error)[:300])
        raise InputError(
            f"IREE does not compile the MLIR: {said}",
            hint="another dialect (--target mlir, mlir-stablehlo, mlir-tosa) or another IREE",
        ) from error

    def run(values: Sequence[Tensor]) -> list[Tensor]:
        try:
            given = [np.require(value.detach().numpy(), requirements="C") for value in values]
            found = main(*given)
        except Exception as error:  # as above
            raise InternalError(f"IREE failed while running the program: {error}") from error
        several = found if isinstance(found, (tuple, list)) else [found]
        return [torch.from_numpy(np.array(one)) for one in several]

    return run
