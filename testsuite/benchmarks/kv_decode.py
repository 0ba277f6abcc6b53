"""A token's attention over 8,192 rows: PYTHONPATH=src:. python testsuite/benchmarks/kv_decode.py.

One layer of decode as ``tokopt compile`` lowers it for onnxruntime-cpu: the cache in, the new row
behind it, one query against all rows, the cache out.  Each step goes on with the cache that the
last one gave.  ``in place``: GroupQueryAttention, which writes the row where the cache lies.
``written out``: what a plain export has (fp32 and fp16), or rows read back in full in front of it.
``copied``: the model in place as who does not know of it runs it, in plain ONNX Runtime.
Heads of 128 channels, one thread.

All ways of a shape run in turn, round after round: a ratio is the median of the rounds' ratios to
fp32, written out or in place, so load that lasts falls on both.  Each way's first result is
compared with the fp32 attention over what the format reads of the cache.  results/kv_decode.json
and .md; about a minute.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn.functional import scaled_dot_product_attention

from tokopt.passes.kv.kept import Kept
from tokopt.passes.kv.program import with_stored
from tokopt.passes.kv.registry import FORMATS
from tokopt.passes.kv.samples import Samples
from tokopt.passes.normalize import normalize
from tokopt.targets.base import Runner
from tokopt.targets.registry import find

RESULTS = Path(__file__).with_name("results")
SHAPES = {"32 heads": (32, 32), "32 heads on 8": (32, 8)}
ROWS, WIDTH = 8192, 128
FULL, IN_PLACE = "fp32, written out", "fp32, in place"
CACHES = {"keys": "new_keys", "values": "new_values"}
Way = Callable[[], Mapping[str, Tensor]]


class Layer(nn.Module):
    """Decode's attention in one layer."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``[B, H, 1, D]`` and both caches, a row longer."""
        keys, values = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        shared = query.shape[1] != keys.shape[1]
        return scaled_dot_product_attention(query, keys, values, enable_gqa=shared), keys, values


def given_of(heads: int, own: int) -> dict[str, Tensor]:
    """Return inputs of a step: rows with a size and a centre for each channel."""
    numbers = torch.Generator().manual_seed(0)

    def rows(count: int) -> Tensor:
        return torch.randn(1, own, count, WIDTH, generator=numbers)

    size, centre = rows(1).abs() + 0.2, rows(1)
    return {
        "query": torch.randn(1, heads, 1, WIDTH, generator=numbers),
        "key": rows(1) * size + centre, "value": rows(1) * size + centre,
        "keys": rows(ROWS - 1) * size + centre, "values": rows(ROWS - 1) * size + centre,
    }  # fmt: skip


def exported_for(given: Mapping[str, Tensor]) -> ExportedProgram:
    """Return the layer with a cache of any length."""
    past = Dim("past", min=2, max=1 << 20)
    shapes = {name: {2: past} if name in ("keys", "values") else None for name in given}
    return normalize(export(Layer().eval(), (), dict(given), dynamic_shapes=shapes))


def lowered(exported: ExportedProgram, given: Mapping[str, Tensor], folder: Path) -> Way:
    """Return a way that runs what onnxruntime-cpu makes of a program, step after step."""
    target = find("onnxruntime-cpu")
    if "written out" in folder.name:
        target = replace(target, native=frozenset(), in_place=False)
    folder.mkdir()
    target.lower(exported, folder, ("out", *CACHES.values()))
    return stepping(target.open(folder), given)


def stepping(run: Runner, given: Mapping[str, Tensor]) -> Way:
    """Return a way that gives each step the caches of the last."""
    taken = dict(given)

    def way() -> Mapping[str, Tensor]:
        found = run(taken)
        taken.update({name: found[grown] for name, grown in CACHES.items()})
        return found

    return way


def copied(folder: Path, given: Mapping[str, Tensor]) -> Way:
    """Return a way that runs a file of ``lowered`` in plain ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    file, providers = str(folder / "model.onnx"), ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(file, options, providers=providers)

    def run(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = ["out", *CACHES.values()]
        found = session.run(names, {name: value.numpy() for name, value in given.items()})
        return {name: torch.from_numpy(one) for name, one in zip(names, found, strict=True)}

    return stepping(run, given)


def ways_of(given: dict[str, Tensor], folder: Path) -> dict[str, tuple[Way, Tensor, int]]:
    """Return each way, what it should compute, and the bytes of its cache."""
    exported, run = exported_for(given), {}
    full = Layer()(**given)[0]
    half = {name: value.half() for name, value in given.items()}
    for name, one in (("fp32", given), ("fp16", half)):
        program, size = exported_for(one), 2 * one["keys"].nbytes
        for title in ("written out", "in place"):
            home = folder / f"{name}, {title}"
            run[home.name] = (lowered(program, one, home), full, size)
        run[f"{name}, copied"] = (copied(home, one), full, size)
    for name in ("int8", "int4"):
        kept, stored, seen = {}, dict(given), dict(given)
        for side, rows in (("key", "keys"), ("value", "values")):
            constants = FORMATS[name].calibrate(side, Samples([given[rows]]))
            one = kept[rows] = Kept(rows[0], side, FORMATS[name], constants)
            stored[rows] = one.handed(given[rows])
            seen[rows] = one.alone(stored[rows])
        wanted, outputs = Layer()(**seen)[0], {1: kept["keys"], 2: kept["values"]}
        nbytes = 2 * stored["keys"].nbytes
        for title, raised in (("in place", True), ("written out", False)):
            program = with_stored(exported, kept, outputs, raised)
            way = lowered(program, stored, folder / f"{name}, {title}")
            run[f"{name}, {title}"] = (way, wanted, nbytes)
        run[f"{name}, copied"] = (copied(folder / f"{name}, in place", stored), wanted, nbytes)
    return run


def measure(given: dict[str, Tensor], rounds: int) -> list[dict[str, Any]]:
    """Return what each way takes and how far off it is."""
    with TemporaryDirectory() as folder:
        ways = ways_of(given, Path(folder))
        off = {}
        for name, (way, wanted, _) in ways.items():
            got = next(iter(way().values())).float()
            off[name] = float((got - wanted).norm() / wanted.norm())
            assert off[name] < (5e-3 if "fp16" in name else 1e-5), (name, off[name])
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, (way, _, _) in ways.items():
                start = time.perf_counter()
                way()
                taken[name].append(1000 * (time.perf_counter() - start))
    found = []
    for name, (_, _, nbytes) in ways.items():
        faster, than_in_place = (
            [a / b for a, b in zip(taken[base], taken[name], strict=True)]
            for base in (FULL, IN_PLACE)
        )
        low, _, high = quantiles(faster, n=4)
        found.append({
            "way": name, "cache_bytes": nbytes, "ms": median(taken[name]),
            "least_ms": min(taken[name]), "faster_than_fp32": median(faster),
            "quartiles": [low, high], "faster_than_fp32_in_place": median(than_in_place),
            "relative_error": off[name],
        })  # fmt: skip
    return found


def table(record: Mapping[str, Any]) -> str:
    """Return the record as a page."""
    lines = [
        f"A layer's attention for one token over {ROWS:,} rows of {WIDTH} channels, "
        f"{record['threads']} thread, ONNX Runtime {record['onnxruntime']}, load "
        f"{record['load']:.1f} on {record['cores']} cores, {record['rounds']} rounds, "
        f"{record['date']}. `python testsuite/benchmarks/kv_decode.py`",
        "",
        "| shape | cache | MB | ms | least ms | faster than fp32 written out | quartiles "
        "| than fp32 in place | relative error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for shape, found in record["shapes"].items():
        for one in found:
            low, high = one["quartiles"]
            lines.append(
                f"| {shape} | {one['way']} | {one['cache_bytes'] / 1e6:.1f} | {one['ms']:.2f} | "
                f"{one['least_ms']:.2f} | {one['faster_than_fp32']:.2f} | {low:.2f} to {high:.2f} "
                f"| {one['faster_than_fp32_in_place']:.2f} | {one['relative_error']:.0e} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every shape and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    shapes = {name: measure(given_of(*heads), options.rounds) for name, heads in SHAPES.items()}
    record = {
        "threads": 1, "cores": os.cpu_count(), "load": load, "rounds": options.rounds,
        "onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__,
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "shapes": shapes,
    }  # fmt: skip
    (options.output / "kv_decode.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.output / "kv_decode.md").write_text(table(record))
    print(table(record))


if __name__ == "__main__":
    main()
