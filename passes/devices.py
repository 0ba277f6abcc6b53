"""Devices: what a roofline needs to know of them, one line each.

Operations per second are dense products with fp32 accumulation, as published: NVIDIA's datasheets
of A100 (SXM, 80 GB), H100 (SXM), H200 (SXM) and L4, and the Ada architecture whitepaper for the
RTX 4090; fp32 without TF32.  ``cpu`` is this machine with torch's threads, measured when asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch

from tokopt.ir.errors import InputError

TERA, GIGA = 1e12, 1e9
CPU = "cpu"
SIDE, COPIED, TIMES = 1024, 2**25, 5
"""What is measured: a product of matrices of this side, a copy of so many numbers, the best of."""


@dataclass(frozen=True)
class Device:
    """``flops``: operations per second by dtype; ``bandwidth``: bytes per second of its memory."""

    name: str
    flops: Mapping[torch.dtype, float]
    bandwidth: float

    def peak(self, dtype: torch.dtype) -> float:
        """Return the operations per second on numbers of a dtype; those of fp32 for others."""
        return self.flops.get(dtype, self.flops[torch.float32])


def _gpu(name: str, half: float, single: float, bandwidth: float) -> Device:
    flops = {torch.float16: half * TERA, torch.bfloat16: half * TERA, torch.float32: single * TERA}
    return Device(name, flops, bandwidth * GIGA)


GPUS = {
    device.name: device
    for device in (
        _gpu("a100", 312, 19.5, 2039),
        _gpu("h100", 989.4, 66.9, 3350),
        _gpu("h200", 989.4, 66.9, 4800),
        _gpu("l4", 121, 30.3, 300),
        _gpu("rtx4090", 165.2, 82.6, 1008),
    )
}


def find_device(name: str) -> Device:
    """Return a device by name.  ``InputError`` names those there are."""
    if name == CPU:
        return this_cpu(torch.get_num_threads())
    if name not in GPUS:
        known = ", ".join((*GPUS, CPU))
        raise InputError(f"nothing is known of the device {name!r}", expected=f"one of {known}")
    return GPUS[name]


@cache
def this_cpu(threads: int) -> Device:
    """Measure this machine; ``threads`` says with how many of torch's it was."""
    numbers = torch.rand(COPIED)
    into = torch.empty_like(numbers)
    seconds = _best(lambda: into.copy_(numbers))
    flops = {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.rand(SIDE, SIDE).to(dtype)
        flops[dtype] = 2 * SIDE**3 / _best(lambda square=square: square @ square)  # type: ignore[misc]
    flops[torch.float16] = flops[torch.float32]  # the CPU multiplies them as such
    return Device(CPU, flops, 2 * numbers.nbytes / seconds)


def _best(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(TIMES):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)
