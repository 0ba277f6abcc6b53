"""Peak memory of compiling an archive of about 1 GB, in multiples of its weights.

    PYTHONPATH=src:. python testsuite/benchmarks/compile_memory.py [--out FILE.json]

Each number is the most memory (``VmHWM``: mapped files count) that a process of its own had, less
that of the same process with a tiny archive of the same graph.  ``runtime``: a process that only
opens the artifact and runs it once; ``beyond`` is what compiling needs beyond that.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from testsuite.zoo.handvlm import HandVlm, Sizes
from testsuite.zoo.sample import capture
from testsuite.zoo.weights import noise

from tokopt.ir.program import Program
from tokopt.ir.save import save

WIDE = {"width": 2048, "heads": 16}
LAYERS = {torch.float32: 5, torch.float16: 10}
"""With so many layers of that width a model has 1 GB of weights."""
CHILD = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from tokopt.cli.main import main
from tokopt.targets.runtime import load
start = time.perf_counter()
if sys.argv[1] == "compile":
    code = main(sys.argv[1:])
else:
    from safetensors.torch import load_file
    artifact = load(sys.argv[2], verify=False)
    artifact(load_file(sys.argv[3]))
    code = 0
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(code, int(peak) * 1024, time.perf_counter() - start, file=sys.stderr)
"""


def write(sizes: Sizes, dtype: torch.dtype, folder: Path) -> tuple[Path, int]:
    """Write an archive and its inputs; return its path and the bytes of its weights."""
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(0)
    module = HandVlm(sizes).to(dtype)
    pixels = noise(1, 3, sizes.image, sizes.image, seed=1).to(dtype)
    ids = torch.cat([torch.full((1, sizes.visual), sizes.image_token), torch.ones(1, 9).long()], 1)
    save(Program.of(capture(module, (ids, pixels))), folder / "model.pt2")
    save_file({"input_ids": ids, "pixels": pixels}, folder / "inputs.safetensors")
    return folder / "model.pt2", sum(p.numel() * p.itemsize for p in module.parameters())


def peak(*arguments: object) -> tuple[int, float]:
    """Run the child; return its peak memory in bytes and its seconds."""
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        code, memory, seconds = done.stderr.splitlines()[-1].split()
    except (ValueError, IndexError):
        raise SystemExit(done.stderr) from None
    if code != "0":
        raise SystemExit(done.stderr)
    return int(memory), round(float(seconds), 1)


def measure(target: str, dtype: torch.dtype, place: Path) -> dict[str, object]:
    """Return one row of the table."""
    found: dict[str, list[int]] = {"compile": [], "runtime": []}
    tiny = Sizes(layers=LAYERS[dtype], tower_layers=2)
    for sizes in (tiny, replace(tiny, **WIDE)):
        folder = place / str(sizes.width)
        model, weights = write(sizes, dtype, folder)
        options = ("--budget", 0.5, "--target", target, "-o", folder / "made")
        memory, seconds = peak("compile", model, *options)
        found["compile"].append(memory)
        found["runtime"].append(peak("run", folder / "made", folder / "inputs.safetensors")[0])
    shares = {name: (large - tiny) / weights for name, (tiny, large) in found.items()}
    return {
        "target": target,
        "dtype": str(dtype),
        "weights_bytes": weights,
        "compile": round(shares["compile"], 3),
        "runtime": round(shares["runtime"], 3),
        "beyond": round(shares["compile"] - shares["runtime"], 3),
        "seconds": seconds,
    }


def main() -> None:
    """Measure and print every row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    rows = []
    for target in ("onnxruntime-cpu", "eager"):
        for dtype in LAYERS:
            if args.only in f"{target} {dtype}":
                with tempfile.TemporaryDirectory() as place:
                    rows.append(measure(target, dtype, Path(place)))
                print(rows[-1], flush=True)
    if args.out:
        report = {
            "command": "python testsuite/benchmarks/compile_memory.py",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "torch": torch.__version__,
            "machine": f"{platform.system()} {platform.machine()}",
            "rows": rows,
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
