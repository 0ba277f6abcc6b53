"""A tower that reuses rows against the whole tower: python testsuite/benchmarks/reuse.py.

A SigLIP-type tower with random weights (12 layers, width 768, 576 rows) with STC's cacher, on ONNX
Runtime with one thread: an update, a reference and the original in turn, round by round.  Ratios
are medians over rounds of one run; the operations are the manifest's.  ``--out`` writes them down.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from testsuite.zoo.weights import randomise
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

import tokopt
from tokopt.targets.base import Runner
from tokopt.targets.manifest import versions
from tokopt.targets.registry import find

TARGET = "onnxruntime-cpu"


class Rows(torch.nn.Module):
    """The tower from pixels to the rows that are handed on."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return rows ``[B, N, C]``."""
        return self.model(pixel_values=pixel_values).last_hidden_state


def measure(layers: int, width: int, side: int, share: float, rounds: int) -> dict[str, Any]:
    """Return the medians in milliseconds, and the ratios."""
    config = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        image_size=side,
        patch_size=16,
        vision_use_head=False,
    )
    model = randomise(SiglipVisionModel(config).eval().requires_grad_(False), 0)
    picture = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory() as folder:
        archive = Path(folder) / "tower.pt2"
        exported = torch.export.export(Rows(model).eval(), (picture,), strict=False)
        torch.export.save(exported, archive)
        asked = f"stc_cacher{{share={share}}}"
        built = Path(folder) / "built"
        done = tokopt.compile(archive, built, budget=1.0, attention=asked, target=TARGET)
        (name,) = exported.graph_signature.user_inputs
        find(TARGET).lower(exported, Path(folder), ["rows"])
        artifact, given = tokopt.load(built), {str(name): picture}
        artifact.on_device(given)
        states = {**given, **artifact.remembered, "reuse_age": torch.ones(1)}
        afresh = {**states, "reuse_age": torch.zeros(1)}
        works = {
            "original": _call(find(TARGET).open(Path(folder)), given),
            "update": _call(artifact.runner, states),
            "reference": _call(artifact.runner, afresh),
        }
        seconds = {who: [] for who in works}  # type: dict[str, list[float]]
        for number in range(rounds + 1):
            for who, work in works.items():
                start = time.perf_counter()
                work()
                if number:
                    seconds[who].append(time.perf_counter() - start)
    whole = zip(*seconds.values(), strict=True)
    ratios = [(update / original, reference / original) for original, update, reference in whole]
    return {
        "layers": layers,
        "width": width,
        "rows": (side // 16) ** 2,
        "share": share,
        "ok": done.ok,
        "milliseconds": {who: 1e3 * statistics.median(took) for who, took in seconds.items()},
        "update / original": statistics.median(ratio for ratio, _ in ratios),
        "reference / original": statistics.median(ratio for _, ratio in ratios),
        "operations of a call, mean, of the original's": done.work.total,
        "bytes remembered": sum(value.nbytes for value in artifact.remembered.values()),
    }


def _call(runner: Runner, inputs: Mapping[str, Tensor]) -> Callable[[], object]:
    return lambda: runner(inputs)


def main() -> None:
    """Measure, print, and write down where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args.layers, args.width, args.side, args.share, args.rounds)
    text = json.dumps({**found, "versions": dict(versions())}, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
