"""Devices: what a roofline needs to know of them, one line each.

Operations per second are dense products with fp32 accumulation, as published: NVIDIA's datasheets
of A100 (SXM, 80 GB), H100 (SXM), H200 (SXM) and L4, and the Ada architecture whitepaper for the
RTX 4090; fp32 without TF32.  ``cpu`` is this machine with torch's threads, measured when
asked for.  What was measured can be stated again, as ``cpu{float32=1e11 bfloat16=1e11
bandwidth=1e10}``: another run is then held to the same.  ``sm_90`` and the like are the slowest of
a generation; ``auto`` is this machine's GPU, or its CPU.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch

from tokopt.ir.errors import InputError
from tokopt.passes.option import read_settings
from tokopt.passes.syntax import read_calls

TERA, GIGA = 1e12, 1e9
CPU, AUTO = "cpu", "auto"
SIDE, COPIED, TIMES = 1024, 2**25, 5
"""What is measured: a product of matrices of this side, a copy of so many numbers, the best of."""


MEASURED = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Device:
    """``flops``: operations per second by dtype; ``bandwidth``: bytes per second of its memory.

    ``generation``: the compute capability of a GPU as NVIDIA writes it, empty for a CPU.
    """

    name: str
    flops: Mapping[torch.dtype, float]
    bandwidth: float
    generation: str = ""

    def peak(self, dtype: torch.dtype) -> float:
        """Return the operations per second on numbers of a dtype; those of fp32 for others."""
        return self.flops.get(dtype, self.flops[torch.float32])

    @property
    def stated(self) -> str:
        """What ``find_device`` makes the same device of, with what was measured."""
        if self.name != CPU:
            return self.name  # of a table, or stated already
        rates = {str(dtype).removeprefix("torch."): self.flops[dtype] for dtype in MEASURED}
        rates["bandwidth"] = self.bandwidth
        return f"{CPU}{{{' '.join(f'{key}={rate:.4g}' for key, rate in rates.items())}}}"


def _gpu(name: str, generation: str, half: float, single: float, bandwidth: float) -> Device:
    flops = {torch.float16: half * TERA, torch.bfloat16: half * TERA, torch.float32: single * TERA}
    return Device(name, flops, bandwidth * GIGA, generation)


GPUS = {
    device.name: device
    for device in (
        _gpu("a100", "sm_80", 312, 19.5, 2039),
        _gpu("h100", "sm_90", 989.4, 66.9, 3350),
        _gpu("h200", "sm_90", 989.4, 66.9, 4800),
        _gpu("l4", "sm_89", 121, 30.3, 300),
        _gpu("rtx4090", "sm_89", 165.2, 82.6, 1008),
    )
}


def find_device(name: str) -> Device:
    """Return a device by name or generation.  ``InputError`` names those there are."""
    if name == AUTO:
        return _this_gpu() if torch.cuda.is_available() else find_device(CPU)
    if name == CPU:
        return this_cpu(torch.get_num_threads())
    if name in GPUS:
        return GPUS[name]
    if name.startswith(f"{CPU}{{"):
        return _stated_cpu(name)
    like = [device for device in GPUS.values() if device.generation == name]
    if not like:
        generations = sorted({device.generation for device in GPUS.values()})
        known = ", ".join((*GPUS, *generations, CPU, AUTO))
        raise InputError(f"nothing is known of the device {name!r}", expected=f"one of {known}")
    return min(like, key=lambda device: device.bandwidth)


def _this_gpu() -> Device:
    """Return what is known of the GPU that torch would use, by what it says it is."""
    said = re.sub(r"[^a-z0-9]", "", torch.cuda.get_device_name().lower())
    found = [name for name in GPUS if name in said]
    major, minor = torch.cuda.get_device_capability()
    return find_device(max(found, key=len) if found else f"sm_{major}{minor}")


def _stated_cpu(text: str) -> Device:
    """Return the CPU that ``Device.stated`` told of; its name is the text."""
    (call, *more) = read_calls(text)
    given = read_settings(call)
    known = [str(dtype).removeprefix("torch.") for dtype in MEASURED]
    rates = {key: given.get(key) for key in (*known, "bandwidth")}
    if more or given.keys() - rates or not all(_positive(rate) for rate in rates.values()):
        raise InputError(
            f"the device {text!r}",
            expected=f"{CPU}{{{' '.join(f'{key}=NUMBER' for key in rates)}}}, in operations and "
            "bytes per second",
        )
    numbers = {key: float(rate) for key, rate in rates.items() if rate is not None}
    flops = dict(zip(MEASURED, (numbers[key] for key in known), strict=True))
    flops[torch.float16] = flops[torch.float32]
    return Device(text, flops, numbers["bandwidth"])


def _positive(rate: object) -> bool:
    return isinstance(rate, (int, float)) and 0 < rate < float("inf")


@cache
def this_cpu(threads: int) -> Device:
    """Measure this machine; ``threads`` says with how many of torch's it was."""
    numbers = torch.rand(COPIED)
    into = torch.empty_like(numbers)
    seconds = _best(lambda: into.copy_(numbers))
    flops = {}
    for dtype in MEASURED:
        square = torch.rand(SIDE, SIDE).to(dtype)
        flops[dtype] = _told(2 * SIDE**3 / _best(lambda square=square: square @ square))  # type: ignore[misc]
    flops[torch.float16] = flops[torch.float32]  # the CPU multiplies them as such
    return Device(CPU, flops, _told(2 * numbers.nbytes / seconds))


def _told(rate: float) -> float:
    """Return a rate to as many digits as ``Device.stated`` has."""
    return float(f"{rate:.4g}")


def _best(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(TIMES):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)
