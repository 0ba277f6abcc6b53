"""Compile time by stage, and how analysis and rewriting grow with depth (tiny weights).

    PYTHONPATH=src:. python testsuite/benchmarks/compile_time.py [--out FILE.json]

Two families: ``vit``, a vision transformer with two stages, and ``vlm``, a LLaVA with free batch
and prompt length whose tower has 4 layers, its decoder 4 to 64, with a stage in each.

Times are processor seconds of one thread (the machine may be busy), the least of three runs.
``trace`` is what torch needs to functionalise the same program, for comparison: tokopt does it only
where a graph writes in place.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from testsuite.zoo import handvit, llava
from testsuite.zoo.sample import capture
from torch.export import Dim, ExportedProgram
from transformers import LlavaForConditionalGeneration

from tokopt.cli.capture_images import images
from tokopt.cli.capture_logits import PromptLogits
from tokopt.cli.capture_request import Request
from tokopt.ir.facts import analyse
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize

DEPTHS = (4, 8, 16, 32, 64)


def seconds(work: Callable[[], Any], runs: int = 3) -> tuple[float, Any]:
    """Return the least processor time of some runs, and the last result."""
    best, result = float("inf"), None
    for _ in range(runs):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


def vit(depth: int) -> tuple[ExportedProgram, tuple[Stage, ...]]:
    """Return a vision transformer and its stages."""
    stages = (
        Stage(f"vision:{max(1, depth // 4)}", "random", 18),
        Stage(f"vision:{depth // 2}", "vtc_cls", 9),
    )
    return handvit.build(depth=depth).exported, stages


def vlm(depth: int) -> tuple[ExportedProgram, tuple[Stage, ...]]:
    """Return a LLaVA with ``depth`` decoder layers, and a stage in the tower and one behind it."""
    config = llava.config(attention="sdpa")
    text: Any = config.text_config
    text.num_hidden_layers = depth
    model: Any = LlavaForConditionalGeneration(config)
    shapes = (batch := {0: Dim("batch", min=1)}, {**batch, 1: Dim("length", min=llava.VISUAL + 2)})
    given = llava.inputs(2, llava.VISUAL + 9, seed=0)
    form = images(model, Request(), {})
    module = PromptLogits(model, form, ("pixel_values", "input_ids")).eval()
    exported = capture(module, given, shapes)
    stages = (Stage("vision:end", "vtc_cls", 18), Stage(f"decoder:{depth // 4}", "fastv", 4))
    return exported, stages


FAMILIES: dict[str, Callable[[int], tuple[ExportedProgram, tuple[Stage, ...]]]] = {
    "vit": vit,
    "vlm": vlm,
}


def measure(
    family: str, depth: int, exported: ExportedProgram, stages: tuple[Stage, ...]
) -> dict[str, str | float]:
    """Return processor seconds by stage for one program."""
    normal_time, normal = seconds(lambda: normalize(exported))
    analyse_time, _ = seconds(lambda: analyse(normal))
    rewrite_time, _ = seconds(lambda: apply_plan(normal, Plan(stages), find_method))
    trace_time, _ = seconds(lambda: exported.run_decompositions({}), runs=1)
    return {
        "family": family,
        "layers": depth,
        "nodes": len(normal.graph.nodes),
        "normalize": round(normal_time, 3),
        "analyse": round(analyse_time, 3),
        "rewrite": round(rewrite_time, 3),
        "analyse + rewrite": round(analyse_time + rewrite_time, 3),
        "trace": round(trace_time, 3),
    }


def table(rows: list[dict[str, str | float]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [[str(value) for value in row.values()] for row in rows]
    parts = [list(rows[0]), ["---"] * len(rows[0]), *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in parts)


def main() -> None:
    """Measure every depth; print the rows, and write them as JSON and as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for family, build in FAMILIES.items():
        for depth in DEPTHS:
            with torch.no_grad():
                rows.append(measure(family, depth, *build(depth)))
            print(rows[-1], flush=True)
    if args.out:
        args.out.with_suffix(".md").write_text(table(rows), encoding="utf-8")
        report = {
            "command": "python testsuite/benchmarks/compile_time.py",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, one thread of a busy two-core machine",
            "rows": rows,
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
