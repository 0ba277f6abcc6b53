"""GPU kernels beside Inductor's code for the same operators: run testsuite/benchmarks/kernels.py.

For each operator with a kernel, at the sizes of real models: the result is checked against the
reference; then the reference as it is, the reference compiled by Inductor (autotuned) and our
kernel are timed in one run, inside CUDA graphs so that a launch costs what it costs in a compiled
program.  The bandwidth reached is that of the bytes the operator must move; it stands beside that
of a large copy measured in the same run.  Writes results/kernels-DEVICE.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.testing import do_bench_cudagraph

from tokopt.ir.dialect import OPS
from tokopt.targets.kernels.registry import Kernel, kernels

RESULTS = Path(__file__).with_name("results")
COPIED = 1 << 30
"""Bytes of the copy that says what the device's memory gives: far more than its caches hold."""
TINY_COPY = 1 << 16
"""Bytes of it in a try."""
CODES = ("int8", "uint8", "float8_e4m3fn")
Timer = Callable[[Callable[[], Any]], float]


def rows_of(model: str, heads: int, own: int, rows: int, keys: int, width: int) -> dict[str, Any]:
    """Return one case of ``attention_rows`` in half precision, logits of about 1."""
    return {"name": "attention_rows", "case": f"{model}: {rows} of {keys} rows, {heads} heads",
            "shapes": [[1, heads, rows, width], [1, own, keys, width]]}  # fmt: skip


def means_of(model: str, rows: int, columns: int, count: int) -> dict[str, Any]:
    """Return one case of ``segmented_mean`` in half precision; every row is in some segment."""
    return {"name": "segmented_mean", "case": f"{model}: {rows} rows of {columns} into {count}",
            "shapes": [[1, rows, columns]], "total": count}  # fmt: skip


def cache_of(model: str, heads: int, own: int, keys: int, width: int, form: str) -> dict[str, Any]:
    """Return one case of ``cached_attention``: a token, in half, over a cache of codes."""
    stored = width // 2 if form == "uint8" else width
    return {"name": "cached_attention", "case": f"{model}: a token over {keys} rows in {form}",
            "shapes": [[1, heads, 1, width], *[[1, own, 1, width]] * 2,
                       *[[1, own, keys, stored]] * 2, *[[1, own, 1, width]] * 4],
            "codes": form}  # fmt: skip


CASES = [
    rows_of("ViT-L/14-336, class row", 16, 16, 1, 577, 64),
    rows_of("LLaVA-1.5-7B, last row", 32, 32, 1, 640, 128),
    rows_of("LLaVA-NeXT-7B, last row", 32, 32, 1, 2944, 128),
    rows_of("Qwen2.5-VL-7B, 32 text rows", 28, 4, 32, 4160, 128),
    means_of("ViT-L/14-336, tower", 577, 1024, 58),
    means_of("LLaVA-1.5-7B, entry", 576, 4096, 58),
    means_of("LLaVA-NeXT-7B, entry", 2880, 4096, 288),
    *(cache_of("LLaVA-NeXT-7B", 32, 32, 2945, 128, form) for form in CODES),
    *(cache_of("Qwen2.5-VL-7B", 28, 4, 8193, 128, form) for form in CODES),
    {"name": "select", "case": "58 of 576", "shapes": [[1, 576]], "total": 58},
    {"name": "select", "case": "288 of 2880", "shapes": [[1, 2880]], "total": 288},
    {"name": "select", "case": "8 items, 410 of 4096", "shapes": [[8, 4096]], "total": 410},
]


def operands(case: dict[str, Any], device: str) -> tuple[Any, ...]:
    """Return the operator's arguments, drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator).to(device) for shape in case["shapes"]]
    if case["name"] == "select":
        return drawn[0], torch.ones_like(drawn[0], dtype=torch.bool), case["total"]
    if case["name"] == "segmented_mean":
        target = torch.randint(case["total"], case["shapes"][0][:2], generator=generator)
        return drawn[0].half(), target.to(device), target.to(device) * 0.0 + 1.0, case["total"]
    if case["name"] == "cached_attention":
        rows, codes, sides = drawn[:3], drawn[3:5], drawn[5:]
        stored = [(50 * one).clamp(-127, 127).to(getattr(torch, case["codes"])) for one in codes]
        constants = [one.abs() / 99 for one in sides[::2]], sides[1::2]
        pairs = [one for pair in zip(*constants, strict=True) for one in pair]
        halves = [one.half() for one in rows]
        return *halves, *stored, *pairs, None, case["shapes"][0][3] ** -0.5
    query, key = (one.half() for one in drawn)
    return query, key, None, query.shape[-1] ** -0.5


def measure(case: dict[str, Any], kernel: Kernel, device: str, timer: Timer) -> dict[str, Any]:
    """Check one case and time the three ways, in milliseconds."""
    args = operands(case, device)
    reference = OPS[case["name"]].reference
    inductor = torch.compile(reference, mode="max-autotune-no-cudagraphs")
    expected = reference(*args)
    ways = {"reference": reference, "kernel": lambda *a: kernel.module.launch(_plain, *a)}
    if device != "cpu":  # what is compiled for the CPU says nothing
        ways["inductor"] = inductor
    found: dict[str, Any] = {"operator": case["name"], "case": case["case"]}
    for way, compute in ways.items():
        near = {"rtol": 1e-4, "atol": 1e-6}
        if expected.dtype == torch.float16:  # what is given is rounded
            near = {"rtol": 2e-3, "atol": 2e-3}
        torch.testing.assert_close(compute(*args), expected, **near)
        found[f"{way}_ms"] = timer(lambda compute=compute: compute(*args))
    found["bytes"] = kernel.module.moved_bytes(*args)
    found["kernel_gb_per_s"] = found["bytes"] / found["kernel_ms"] / 1e6
    return found


def _plain(kernel: Any) -> Any:
    return kernel


def copy_bandwidth(timer: Timer, device: str, copied: int) -> float:
    """Return GB/s of a copy on a device, reads and writes counted."""
    source: Tensor = torch.empty(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * copied / timer(lambda: target.copy_(source)) / 1e6


def shrunk(case: dict[str, Any]) -> dict[str, Any]:
    """Return a case with few rows and heads, for a try; as many queries share a head of keys."""
    total = {"total": case["total"] % 30 + 1} if "total" in case else {}
    shapes = [[n if n <= 256 else 40 + n % 3 for n in shape] for shape in case["shapes"]]
    if len(shapes[0]) == 4:
        least = min(shape[1] for shape in shapes)
        shapes = [[items, heads // least, *rest] for items, heads, *rest in shapes]
    return {**case, **total, "shapes": shapes}


def by_the_clock(work: Callable[[], Any]) -> float:
    """Return milliseconds of one run, of a try."""
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    """Measure every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="default: results/kernels-DEVICE.json")
    parser.add_argument(
        "--tiny", action="store_true", help="few rows, on the CPU by Triton's interpreter: a try"
    )
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("these kernels are measured on a GPU, and torch finds no CUDA device here")
    place, timer, cases, copied = "cuda", do_bench_cudagraph, CASES, COPIED
    if options.tiny:
        place, timer, copied = "cpu", by_the_clock, TINY_COPY
        cases = [shrunk(case) for case in CASES]
    device = "a try" if options.tiny else torch.cuda.get_device_name()
    found = [measure(case, kernels()[case["name"]], place, timer) for case in cases]
    record = {
        "device": device, "torch": torch.__version__, "triton": triton.__version__,
        "tiny": options.tiny, "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "copy_gb_per_s": copy_bandwidth(timer, place, copied), "cases": found,
    }  # fmt: skip
    name = f"kernels-{device.lower().replace(' ', '-')}.json"
    (options.output or RESULTS / name).write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
