"""Sparse decode: time a token at 8,192 rows, and what the trained model still answers.

PYTHONPATH=src:. python testsuite/benchmarks/sparse_decode.py: about ten minutes, of which the
first one (``--only time``) wants an idle machine.

Time: eight layers of decode (32 heads on 8, or 32, of 128 channels), as ``--sparse-decode delta``
makes them with the paper's numbers, lowered for onnxruntime-cpu, one thread.  Caches that come back
whole are copied for every token; new rows alone are not.  Full and sparse steps run in turn, round
after round: a ratio is the median of the rounds' ratios.  Outputs are those of the masked step.

Answers: the trained digits-llava reads a question but its last word, decode that one, with caches
of 147 rows of which few pages are kept, from the first row on.

results/sparse_decode_time.json and .md, results/sparse_decode_answers.json and .md.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
from testsuite.benchmarks.accuracy import FIRST_SEED, machine
from testsuite.benchmarks.kv_answers import answers, given
from testsuite.models.build import archive, trained
from testsuite.models.digits import samples
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn.functional import scaled_dot_product_attention

import tokopt
from tokopt.cli.main import main as tokopt_main
from tokopt.ir.load import load
from tokopt.passes.decompose import decompose
from tokopt.passes.normalize import normalize
from tokopt.passes.sparse_decode.masked import run_sparse
from tokopt.passes.sparse_decode.pages import Pages
from tokopt.passes.sparse_decode.pays import paying_rows
from tokopt.passes.sparse_decode.placement import published
from tokopt.passes.sparse_decode.sparsify import sparsify
from tokopt.passes.validate import relative_difference
from tokopt.targets.manifest import versions
from tokopt.targets.registry import find

RESULTS = Path(__file__).with_name("results")
LAYERS, HEADS, WIDTH, STREAM = 8, 32, 128, 256
SHARED = {"32 heads": 32, "32 heads on 8": 8}
KEPT = ("", "{page=4 pages=16 recent=2 from=1}", "{page=4 pages=8 recent=2 from=1}")
BUDGETS, CALIBRATION, AT_ONCE = (1.0, 0.25), 8, 50


class Steps(nn.Module):
    """``x [1,1,C], caches [1,G,T,D] -> x``, and the caches ``whole`` or their new rows."""

    def __init__(self, shared: int, whole: bool) -> None:
        super().__init__()
        self.shared, self.whole = shared, whole
        self.query, self.rows, self.out = (
            nn.ModuleList(nn.Linear(*sizes) for _ in range(LAYERS))
            for sizes in (
                (STREAM, HEADS * WIDTH),
                (STREAM, 2 * shared * WIDTH),
                (HEADS * WIDTH, STREAM),
            )
        )

    def forward(self, x: Tensor, caches: list[Tensor]) -> tuple[Tensor, ...]:
        """Decode one token."""
        back = []
        for depth in range(LAYERS):
            query = self.query[depth](x).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
            new = self.rows[depth](x).unflatten(-1, (2, self.shared, WIDTH)).unbind(2)
            new = [one.transpose(1, 2) for one in new]
            keys, values = (torch.cat([caches[2 * depth + i], new[i]], 2) for i in range(2))
            back += [keys, values] if self.whole else new
            grouped = self.shared != HEADS
            read = scaled_dot_product_attention(query, keys, values, enable_gqa=grouped)
            x = x + self.out[depth](read.transpose(1, 2).flatten(2))
        return (x, *back)


def steps(shared: int, whole: bool, rows: int, rounds: int) -> dict[str, Any]:
    """Return what a full and a sparse step take."""
    torch.manual_seed(0)
    model = Steps(shared, whole).eval().requires_grad_(False)
    caches = [torch.randn(1, shared, rows - 1, WIDTH) for _ in range(2 * LAYERS)]
    inputs, past = (torch.randn(1, 1, STREAM), caches), Dim("past", min=2, max=1 << 20)
    shapes = (None, [{2: past} for _ in caches])
    full = normalize(export(model, inputs, dynamic_shapes=shapes, strict=False))
    names, groups, pages = [f"caches_{i}" for i in range(2 * LAYERS)], published(LAYERS), Pages()
    fed = {"x": inputs[0], **dict(zip(names, caches, strict=True))}
    programs = {"full": full, "sparse": decompose(sparsify(full, names, groups, pages))}
    wanted = {
        name: run_sparse(full, names, groups if name == "sparse" else None, pages, fed).outputs[0]
        for name in programs
    }
    target, taken = find("onnxruntime-cpu"), {name: list[float]() for name in programs}
    with TemporaryDirectory(prefix="tokopt-") as folder:
        runs = {}
        for name, program in programs.items():
            target.lower(program, Path(folder), part=f"-{name}")
            runs[name] = target.open(Path(folder), f"-{name}")
            off = relative_difference(wanted[name], next(iter(runs[name](fed).values())))
            assert off < 1e-4, (name, off)
        for _ in range(rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run(fed)
                taken[name].append(1000 * (time.perf_counter() - start))
    faster = [a / b for a, b in zip(taken["full"], taken["sparse"], strict=True)]
    low, _, high = quantiles(faster, n=4)
    return {
        "caches": "whole" if whole else "new rows",
        "rows": rows,
        "counted_from": paying_rows(groups, pages, [(shared * WIDTH,) * 2] * LAYERS),
        "full_ms": median(taken["full"]),
        "sparse_ms": median(taken["sparse"]),
        "faster": median(faster),
        "quartiles": [low, high],
    }


def questions(count: int) -> list[dict[str, Any]]:
    """Compile the trained model with fewer and fewer pages, and ask."""
    starts = range(0, count, AT_ONCE)
    batches = [samples(FIRST_SEED + at, min(AT_ONCE, count - at)) for at in starts]
    right, found = torch.cat([asked.answers for asked in batches]), []
    calibration = given(samples(0, CALIBRATION, "train"))
    with TemporaryDirectory(prefix="tokopt-") as temporary, torch.no_grad():
        place = Path(temporary)
        trained("llava").save_pretrained(place / "model")
        source = place / "two.pt2"
        words = ["export", str(place / "model"), "--decode", "--dynamic", "batch,length"]
        if tokopt_main([*words, "-o", str(source)]):
            raise SystemExit("the export failed")
        for budget in BUDGETS:
            full = None
            for kept in KEPT:
                options = {"budget": budget, "inputs": calibration, "target": "onnxruntime-cpu"}
                options["sparse_decode"] = f"delta{kept}" if kept else None
                made = tokopt.compile(source, place / "built", **options)
                said, _ = answers(tokopt.load(made.folder), batches)
                full = said if full is None else full
                sparse = made.manifest.sparse
                found.append(
                    {
                        "budget": budget,
                        "pages": "all" if sparse is None else f"{sparse.pages} of {sparse.page}",
                        "layers": None if sparse is None else [sparse.full, sparse.select],
                        "note": "" if sparse is None else sparse.note,
                        "right": float((said == right).double().mean()),
                        "same": float((said == full).double().mean()),
                        "gates_ok": made.ok,
                    }
                )
    return found


def time_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what steps take, as markdown."""
    lines = [
        "| shape | caches come back | rows | full ms | sparse ms | faster | quartiles |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        low, high = one["quartiles"]
        lines.append(
            f"| {one['shape']} | {one['caches']} | {one['rows']:,} | {one['full_ms']:.1f} | "
            f"{one['sparse_ms']:.1f} | {one['faster']:.2f} | {low:.2f} to {high:.2f} |"
        )
    return lines


def answers_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is answered, as markdown."""
    lines = ["| budget | pages kept | full layers | choosing | right | same as with all pages |"]
    lines.append("|---|---|---|---|---|---|")
    for one in rows:
        full, select = (", ".join(map(str, depths)) for depths in one["layers"] or ([], []))
        lines.append(
            f"| {one['budget']:g} | {one['pages']} | {full} | {select} | {one['right']:.1%} | "
            f"{one['same']:.1%} |"
        )
    return lines


def write(output: Path, name: str, record: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Write a part of the results, and show it."""
    told = f"{record['command']}, load {record['load']:.1f}, {record['date']}"
    text = "\n".join([*lines, "", told]) + "\n"
    output.mkdir(parents=True, exist_ok=True)
    (output / f"sparse_decode_{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (output / f"sparse_decode_{name}.md").write_text(text)
    print(text)


def main() -> None:
    """Measure everything and write the results."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--samples", type=int, default=500)
    flags.add_argument("--rounds", type=int, default=21)
    flags.add_argument("--rows", type=int, nargs="+", default=[8192])
    flags.add_argument("--only", choices=("time", "answers"))
    flags.add_argument("--output", type=Path, default=RESULTS)
    args = flags.parse_args()
    torch.set_num_threads(1)
    about = {
        "command": shlex.join(["python", "testsuite/benchmarks/sparse_decode.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": os.getloadavg()[0],
        "machine": machine(),
        "versions": versions(),
    }
    if args.only != "answers":
        rows = [
            {"shape": shape, **steps(shared, whole, rows, args.rounds)}
            for shape, shared in SHARED.items()
            for whole in (True, False)
            for rows in args.rows
        ]
        write(args.output, "time", {**about, "rounds": args.rounds, "rows": rows}, time_table(rows))
    if args.only != "time":
        found = questions(args.samples)
        model = {"samples": args.samples, "model_sha256": load(archive("llava")).sha256}
        write(args.output, "answers", {**about, **model, "rows": found}, answers_table(found))


if __name__ == "__main__":
    main()
