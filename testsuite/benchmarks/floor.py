"""Compiled time against the token floor: python testsuite/benchmarks/floor.py.

A LLaVA-type model of middle size with random weights (a tower and a decoder of 12 layers each,
width 512, 576 visual tokens, 64 words) at budget 0.1, on every target named by ``--targets``: what
``tokopt bench`` measures, in one run.  Writes results/floor.json and results/floor.md.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from testsuite.zoo.weights import randomise
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import tokopt
from tokopt.cli.bench import as_data
from tokopt.cli.bencher import bench
from tokopt.ir.program import Program

RESULTS = Path(__file__).with_name("results")
WIDTH, LAYERS, HEADS, WORDS, IMAGE, SIDE, PATCH = 512, 12, 8, 64, 999, 336, 14
VISUAL = (SIDE // PATCH) ** 2


class Logits(torch.nn.Module):
    """The model from pixels and ids to the logits of all rows."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits ``[B, N, vocabulary]``."""
        given = {"input_ids": input_ids, "pixel_values": pixel_values, "use_cache": False}
        logits: torch.Tensor = self.model(**given, logits_to_keep=1).logits
        return logits


def model() -> Program:
    """Return the exported model, with its inputs."""
    sizes = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
    vision = CLIPVisionConfig(**sizes, intermediate_size=2048, image_size=SIDE, patch_size=PATCH)
    text = LlamaConfig(**sizes, intermediate_size=1408, vocab_size=1000, pad_token_id=0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    made = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    module = Logits(randomise(made.eval().requires_grad_(False), 0))
    drawn = torch.Generator().manual_seed(0)
    words = torch.randint(3, IMAGE, (1, WORDS), generator=drawn)
    image = torch.full((1, VISUAL), IMAGE)
    ids = torch.cat([words[:, :16], image, words[:, 16:]], dim=1)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=drawn)
    with torch.no_grad():
        return Program({"main": torch.export.export(module, (ids, pixels), strict=False)})


def measured(archive: Path, folder: Path, target: str, args: argparse.Namespace) -> dict[str, Any]:
    """Compile for a target and time what comes out."""
    start = time.perf_counter()
    made = tokopt.compile(archive, folder, budget=args.budget, method=args.method, target=target)
    compiled = time.perf_counter() - start
    found = bench(folder, archive, rounds=args.rounds, memory=True, quiet=False)
    return {
        "tokens": made.budget.total,
        "gates": made.manifest.status,
        "compile_seconds": round(compiled, 1),
        **as_data(found),
    }


def table(data: Mapping[str, Any]) -> str:
    """Return the numbers as Markdown."""
    lines = [
        "| target | original ms | compiled ms | floor ms | original / compiled | original / floor "
        "| compiled / floor | selector alone ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in data["targets"]:
        timed = one["timed"][0]
        milli = [f"{timed['seconds'][who]['median'] * 1e3:.1f}" for who in timed["seconds"]]
        names = ("original/compiled", "original/floor", "compiled/floor")
        ratio = [f"{timed[name]['median']:.3f}" for name in names]
        alone = sum(stage["median"] for stage in timed["stage_seconds"].values())
        lines.append(f"| {' | '.join([one['target'], *milli, *ratio, f'{alone * 1e3:.2f}'])} |")
    what = (
        f"{LAYERS} + {LAYERS} layers, width {WIDTH}, {VISUAL} visual tokens, {WORDS} words, "
        f"batch 1, random weights; budget {data['budget']}, "
        f"{'; '.join(data['targets'][0]['stages'])}; medians of {data['rounds']} rounds, "
        f"{data['machine']}, {data['date']}, `{data['command']}`"
    )
    return "\n".join([*lines, "", what, ""])


def main() -> None:
    """Run everything, print the table, write the results."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--targets", default="onnxruntime-cpu,aotinductor")
    flags.add_argument("--budget", type=float, default=0.1)
    flags.add_argument("--method", help="the default method where none is given")
    flags.add_argument("--rounds", type=int, default=30)
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--out", type=Path, default=RESULTS)
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    names = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    cpu = next((x.partition(": ")[2] for x in names if x.startswith("model name")), "")
    start, found = time.perf_counter(), []
    with TemporaryDirectory(prefix="tokopt-") as place:
        archive = Path(place, "model.pt2")
        torch.export.save(model().main, archive)
        for target in args.targets.split(","):
            found.append(measured(archive, Path(place, target), target, args))
    data = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "testsuite/benchmarks/floor.py", *sys.argv[1:]]),
        "machine": f"{cpu or platform.processor()}, {args.threads} of {os.cpu_count()} threads",
        "budget": args.budget,
        "rounds": args.rounds,
        "seconds": round(time.perf_counter() - start, 1),
        "targets": found,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "floor.json").write_text(json.dumps(data, indent=1) + "\n")
    (args.out / "floor.md").write_text(table(data))
    print(table(data))


if __name__ == "__main__":
    main()
