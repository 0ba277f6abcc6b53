"""Compiled time against the token floor: python testsuite/benchmarks/floor.py.

What ``tokopt bench`` measures, in one run, of one of these at budget 0.1 on every target named by
``--targets``; results/floor*.json and results/floor*.md have it.

    middle (default)   a LLaVA-type model of middle size with random weights: a tower and a decoder
                       of 12 layers each, width 512, 576 visual tokens, 64 words
    --shape NAME       a published model's shape with random weights (``shapes.py``), for a GPU:
                       floor.py --shape llava-1.5-7b --dtype float16 --layers 8,12
                                --targets eager-cuda,aotinductor-cuda,aotinductor-cuda-plain,
                                          onnxruntime-cuda

With ``--tiny --share 4`` the same, but for peak memory, runs in seconds on a CPU: a test has it so.

``--decode``: the same as two programs, prefill and decode; a token and a prompt with an answer are
timed as well, and ``--kv int8`` stores the artifact's cache so.  Results are floor-decode*.*.

Of ``--layers`` N, M two depths are measured, and milliseconds at the model's whole depth are said
to lie on the line through both; nothing else is extrapolated.  Outputs are checked by the gates of
the compilation.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from testsuite.benchmarks.shapes import SHAPES, TINY_SHAPES, WORDS
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
from tokopt.cli.capture_families import FAMILIES
from tokopt.cli.capture_generation import Generation
from tokopt.cli.capture_request import Request
from tokopt.ir.program import Program
from tokopt.ir.save import save
from tokopt.targets.manifest import versions

RESULTS = Path(__file__).with_name("results")
WIDTH, LAYERS, HEADS, IMAGE, SIDE, PATCH = 512, 12, 8, 999, 336, 14
MIDDLE = "middle"
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


def middle(decode: bool) -> Program:
    """Return the exported model, with its inputs."""
    sizes = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
    vision = CLIPVisionConfig(**sizes, intermediate_size=2048, image_size=SIDE, patch_size=PATCH)
    text = LlamaConfig(**sizes, intermediate_size=1408, vocab_size=1000, pad_token_id=0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    made = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    made = randomise(made.eval().requires_grad_(False), 0)
    if decode:
        request = Request((SIDE, SIDE), VISUAL + WORDS, decode=True)
        capture = FAMILIES[config.model_type].prepare(made, request, {})
        with torch.no_grad():
            return Program(Generation.of(capture, request).trace())
    module = Logits(made)
    drawn = torch.Generator().manual_seed(0)
    words = torch.randint(3, IMAGE, (1, WORDS), generator=drawn)
    image = torch.full((1, VISUAL), IMAGE)
    ids = torch.cat([words[:, :16], image, words[:, 16:]], dim=1)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=drawn)
    with torch.no_grad():
        return Program({"main": torch.export.export(module, (ids, pixels), strict=False)})


def programs(args: argparse.Namespace) -> Iterator[tuple[int, Program]]:
    """Yield the programs to measure, each with how many layers the consumer has."""
    if args.shape == MIDDLE:
        yield LAYERS, middle(args.decode)
        return
    shape = (TINY_SHAPES if args.tiny else SHAPES)[args.shape]
    for layers in args.layers or [shape.layers]:
        exported = shape.export(layers, getattr(torch, args.dtype), args.share)
        yield layers, Program({"main": exported})


def whole_depth(found: Sequence[Mapping[str, Any]], layers: int) -> dict[str, dict[str, float]]:
    """Return median milliseconds at ``layers``, by target, on the line through two depths."""
    lines: dict[str, dict[str, float]] = {}
    for one in found:
        others = [o for o in found if o["target"] == one["target"] and o["layers"] > one["layers"]]
        for other in others[:1]:
            near, far = (o["timed"][0]["seconds"] for o in (one, other))
            lines[one["target"]] = {}
            for who in near:
                a, b = near[who]["median"] * 1e3, far[who]["median"] * 1e3
                step = (b - a) / (other["layers"] - one["layers"])
                lines[one["target"]][who] = round(a + step * (layers - one["layers"]), 3)
    return lines


def machine(args: argparse.Namespace) -> str:
    """Return the processor and how many of its threads are used; the GPU where it is one's turn."""
    names = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    cpu = next((x.partition(": ")[2] for x in names if x.startswith("model name")), "")
    own = f"{cpu or platform.processor()}, {args.threads} of {os.cpu_count()} threads"
    gpu = "cuda" in args.targets and torch.cuda.is_available()
    return f"{torch.cuda.get_device_name()}; {own}" if gpu else own


def measured(archive: Path, folder: Path, target: str, args: argparse.Namespace) -> dict[str, Any]:
    """Compile for a target and time what comes out."""
    start = time.perf_counter()
    made = tokopt.compile(
        archive, folder, budget=args.budget, method=args.method, target=target, kv=args.kv
    )
    compiled = time.perf_counter() - start
    found = bench(folder, archive, rounds=args.rounds, memory=not args.tiny, quiet=False)
    return {
        "tokens": made.budget.total,
        "gates": made.manifest.status,
        "compile_seconds": round(compiled, 1),
        **as_data(found),
    }


def table(data: Mapping[str, Any]) -> str:
    """Return the numbers as Markdown."""
    lines = [
        "| target | layers | what | original ms | compiled ms | floor ms | original / compiled "
        "| original / floor | compiled / floor | selector alone ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in data["targets"]:
        for timed in one["timed"]:
            taken = (timed["seconds"].get(who) for who in ("original", "compiled", "floor"))
            milli = ["" if found is None else f"{found['median'] * 1e3:.1f}" for found in taken]
            names = ("original/compiled", "original/floor", "compiled/floor")
            ratio = ["" if timed[n] is None else f"{timed[n]['median']:.3f}" for n in names]
            alone = sum(stage["median"] for stage in timed["stage_seconds"].values())
            stages = f"{alone * 1e3:.2f}" if timed["stage_seconds"] else ""
            cells = [one["target"], str(one["layers"]), timed["what"], *milli, *ratio, stages]
            lines.append(f"| {' | '.join(cells)} |")
    for target, taken in data["whole_depth_ms"].items():
        rest = ", ".join(f"{who} {milli:.1f} ms" for who, milli in taken.items())
        lines += ["", f"{target} at {data['whole_depth']} layers, extrapolated: {rest}."]
    what = (
        f"{data['model']}; random weights, batch 1; budget {data['budget']}, "
        f"{'; '.join(data['targets'][0]['stages'])}; medians of {data['rounds']} rounds, "
        f"{data['machine']}, {data['date']}, `{data['command']}`"
    )
    return "\n".join([*lines, "", what, ""])


def described(args: argparse.Namespace) -> tuple[str, int]:
    """Return what is measured in words, and the layers that its consumer really has."""
    if args.shape == MIDDLE:
        words = f"{LAYERS} + {LAYERS} layers, width {WIDTH}, {VISUAL} visual tokens, {WORDS} words"
        return words + ("" if args.kv is None else f"; the artifact's cache in {args.kv}"), LAYERS
    shape = (TINY_SHAPES if args.tiny else SHAPES)[args.shape]
    tried = args.share > 1 or args.tiny
    widths = "real widths" if not tried else f"widths divided by {args.share}: a try"
    tower = f" behind a tower of {shape.tower} layers" if shape.tower else ""
    words = f"{args.shape}{tower}, {shape.visual} visual tokens, {args.dtype}, {widths}"
    return words, shape.layers


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--shape", choices=[MIDDLE, *SHAPES], default=MIDDLE)
    flags.add_argument("--layers", type=lambda text: [int(n) for n in text.split(",")])
    flags.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    flags.add_argument("--share", type=int, default=1, help="divide widths: to try the script")
    flags.add_argument(
        "--tiny", action="store_true", help="few patches and words: to try the script"
    )
    flags.add_argument("--targets", default="onnxruntime-cpu,aotinductor")
    flags.add_argument("--budget", type=float, default=0.1)
    flags.add_argument("--method", help="the default method where none is given")
    flags.add_argument("--decode", action="store_true", help="prefill and decode (middle)")
    flags.add_argument("--kv", help="the format of the artifact's cache, with --decode")
    flags.add_argument("--rounds", type=int, default=30)
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--out", type=Path, default=RESULTS)
    args = flags.parse_args()
    if args.decode and args.shape != MIDDLE:
        flags.error("--decode is of the model of middle size")
    return args


def main() -> None:
    """Run everything, print the table, write the results."""
    args = arguments()
    torch.set_num_threads(args.threads)
    words, whole = described(args)
    start, found = time.perf_counter(), list[dict[str, Any]]()
    with TemporaryDirectory(prefix="tokopt-") as place:
        for layers, program in programs(args):
            archive = Path(place, "model.pt2")
            save(program, archive)
            del program
            for target in args.targets.split(","):
                with TemporaryDirectory(dir=place) as folder:
                    one = measured(archive, Path(folder, target), target, args)
                    found.append({"target": target, "layers": layers, **one})
    data = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "testsuite/benchmarks/floor.py", *sys.argv[1:]]),
        "machine": machine(args),
        "versions": versions(),
        "model": words,
        "whole_depth": whole,
        "whole_depth_ms": whole_depth(found, whole),
        "budget": args.budget,
        "rounds": args.rounds,
        "seconds": round(time.perf_counter() - start, 1),
        "targets": found,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    of = [args.shape] * (args.shape != MIDDLE) + ["decode"] * args.decode
    name = "-".join(["floor", *of, *([] if args.kv is None else [args.kv.replace("/", "-")])])
    (args.out / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    (args.out / f"{name}.md").write_text(table(data))
    print(table(data))


if __name__ == "__main__":
    main()
