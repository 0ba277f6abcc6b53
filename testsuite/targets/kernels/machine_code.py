"""Compile every kernel to machine code for GPUs that need not be there: machine_code.py 80 90.

Compiled is what ``testsuite/benchmarks/kernels.py`` launches: the sizes of real models.  Prints a
JSON list: of each form of launch the operator, the kernel, the generation, registers, the bytes of
shared memory and of the stack, on which registers are spilled.  Run apart from the tests, where
Triton's functions are interpreted.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import triton
from testsuite.benchmarks.kernels import CASES, operands
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tokopt.targets.kernels.registry import kernels

TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64",
    torch.int32: "i32", torch.int8: "i8", torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip
WARP, ALIGNED = 32, 16


@dataclass
class Compiler:
    """Stands where a launcher wraps a kernel: ``compiler(kernel)[grid](...)`` compiles it."""

    operator: str
    sm: int
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __call__(self, kernel: Any) -> Any:
        """Return what a launcher indexes by its grid."""
        compiler = self

        class Launcher:
            def __getitem__(self, grid: Any) -> Any:
                return lambda *args, **constants: compiler.compile(kernel, args, constants)

        return Launcher()

    def compile(self, kernel: Any, args: tuple[Any, ...], constants: dict[str, Any]) -> None:
        """Compile as a launch with these arguments would, once for each form of them."""
        given = dict(zip(kernel.arg_names, args, strict=False))
        signature = {name: _type(value) for name, value in given.items()}
        aligned = [at for at, value in enumerate(args) if _is_aligned(value)]
        key = f"{kernel.fn.__name__} {signature} {aligned} {constants}"
        if key in self.found:
            return
        signature |= dict.fromkeys(constants, "constexpr")
        hints = {(at,): [["tt.divisibility", ALIGNED]] for at in aligned}
        source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=hints)
        made = triton.compile(source, target=GPUTarget("cuda", self.sm, WARP))
        self.found[key] = {
            "operator": self.operator, "kernel": kernel.fn.__name__, "sm": self.sm,
            "shared": made.metadata.shared, **_used(made.asm["cubin"]),
        }  # fmt: skip


def _is_aligned(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, int) and value % ALIGNED == 0)


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


def _used(code: bytes) -> dict[str, int]:
    """Return registers of a thread and bytes of its stack, as NVIDIA's tool reads machine code."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with TemporaryDirectory() as folder:
        file = Path(folder, "code.cubin")
        file.write_bytes(code)
        told = subprocess.run(
            [tool, "-res-usage", file], capture_output=True, text=True, check=True
        ).stdout
    (registers,), (stack,) = (re.findall(rf"{name}:(\d+)", told) for name in ("REG", "STACK"))
    return {"registers": int(registers), "stack": int(stack)}


def main() -> None:
    """Launch every case at a compiler instead of a GPU."""
    found: list[dict[str, Any]] = []
    for sm in map(int, sys.argv[1:]):
        compilers = {name: Compiler(name, sm) for name in kernels()}
        for case in CASES:
            name = case["name"]
            kernels()[name].module.launch(compilers[name], *operands(case, "cpu"))
        found += [one for compiler in compilers.values() for one in compiler.found.values()]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
