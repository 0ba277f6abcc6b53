"""Peak memory: what a process needs that opens one lowered program and runs it.

``python -m tokopt.cli.peak_memory TARGET FOLDER PART INPUTS THREADS`` prints one JSON object of
bytes: ``before`` (libraries and inputs are loaded) and ``peak`` (of the whole process, as the
operating system counted it).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tokopt.ir.errors import InternalError

UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of what ``ru_maxrss`` counts in (getrusage(2))."""

RUNS = 2


@dataclass(frozen=True)
class Memory:
    """Bytes resident at most: before the program was opened, and in all."""

    before: int
    peak: int


def measure(target: str, folder: Path, part: str, inputs: Path, threads: int) -> Memory:
    """Open and run a program in a process of its own; ``inputs`` is a safetensors file."""
    words = [target, str(folder), part, str(inputs), str(threads)]
    found_here = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    line = [sys.executable, "-m", __name__, *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=found_here)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InternalError(f"the process whose memory is measured failed: {last}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def _peak() -> int:
    """Return this program's own peak: what ``getrusage`` says may be its parent's, before exec."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def _main(target: str, folder: str, part: str, inputs: str, threads: str) -> None:
    import torch
    from safetensors.torch import load_file

    from tokopt.targets.registry import find

    torch.set_num_threads(int(threads))
    chosen, given, before = find(target), load_file(inputs), _peak()
    run = chosen.open(Path(folder), part)
    for _ in range(RUNS):
        run(given)
    print(json.dumps({"before": before, "peak": _peak()}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
