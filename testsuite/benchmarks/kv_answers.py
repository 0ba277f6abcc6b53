"""Answers of artifacts, selection by bits: python testsuite/benchmarks/kv_answers.py.

The trained LLaVA (testsuite/models) is exported with decode and compiled for ONNX Runtime at each
budget in each format of its cache.  Prefill reads a held-out question but its last token, decode
reads that one on the cache that prefill stored, and answers: so what is counted is what selection
and bits do together, in the programs that are shipped.  Scales are measured on training questions.
Bytes are those of the cache as it lies before that one is decoded: rows that wait, codes, scales.
Writes results/kv_answers.{json,md} and the table of docs/kv.md.  ``--caches`` measures some of the
formats and keeps the other rows, where those are of the same model, questions and versions.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from testsuite.benchmarks.accuracy import FIRST_SEED, machine
from testsuite.benchmarks.kv_formats_table import write_page
from testsuite.models.build import archive, trained
from testsuite.models.digits import Samples, samples
from torch import Tensor

import tokopt
from tokopt.cli.main import main as tokopt_main
from tokopt.ir.load import load
from tokopt.targets.coding import coded
from tokopt.targets.manifest import versions
from tokopt.targets.runtime import Artifact

BUDGETS = (1.0, 0.25, 0.1, 0.05)
CACHES = (
    "half",
    "int8",
    "int8/int4",
    "int4",
    "kivi{bits=4 window=0}",
    "kivi{window=0}",
    "zipcache",
    "vidkv",
)
FULL = "as exported (fp32)"
CALIBRATION, AT_ONCE = 8, 50
RESULTS = Path(__file__).with_name("results")
START, END = "<!-- kv_answers -->\n", "<!-- end of kv_answers -->\n"


def given(asked: Samples) -> dict[str, Tensor]:
    """Return questions as the programs take them: the last token is decode's."""
    before, last = asked.input_ids[:, :-1], asked.input_ids[:, -1:]
    return {
        "pixel_values": asked.pixel_values,
        "input_ids": before.contiguous(),
        "decode_input_ids": last.contiguous(),
        "position_ids": torch.full_like(last, before.shape[1]),
    }


def answers(model: Artifact, batches: Sequence[Samples]) -> tuple[Tensor, float]:
    """Return the answers, and the bytes of a question's cache as decode finds it."""
    found, size, links = [], 0.0, model.manifest.links
    (decode,) = (one for one in model.manifest.programs if one.name == "decode")
    for asked in batches:
        ran = model(given(asked))
        found.append(ran["decode_logits"][:, -1].argmax(-1))
        handed = {link.input: ran[link.output] for link in links if link.target == "decode"}
        cache = coded(decode.coders, handed, lambda coder: model.program(coder.name).on_device)
        size += sum(value.nbytes for value in cache.values())
    return torch.cat(found), size / sum(len(asked.answers) for asked in batches)


def rows_of(
    source: Path, place: Path, batches: Sequence[Samples], caches: Sequence[str]
) -> list[dict[str, Any]]:
    """Compile and ask, cell by cell; the cache in full first."""
    calibration = given(samples(0, CALIBRATION, "train"))
    right = torch.cat([asked.answers for asked in batches])
    rows, full = [], dict[float, Tensor]()
    for budget in BUDGETS:
        for kv in (None, *caches):
            options = {"budget": budget, "kv": kv, "inputs": calibration}
            made = tokopt.compile(source, place, target="onnxruntime-cpu", **options)
            said, size = answers(tokopt.load(made.folder), batches)
            full.setdefault(budget, said)
            kept = made.manifest.budget.total
            rows.append(
                {
                    "date": datetime.now(UTC).date().isoformat(),
                    "budget": budget,
                    "cache": kv or FULL,
                    "stages": [f"{s.method} {s.site} {s.keep}" for s in made.plan.stages],
                    "tokens": kept["tokens"].measured,
                    "visual_kv_of_16_bits": kept["kv"].measured if kv else 2 * kept["kv"].measured,
                    "cache_bytes_a_question": size,
                    "right": float((said == right).double().mean()),
                    "same_as_full_cache": float((said == full[budget]).double().mean()),
                    "notes": [one.note for one in made.manifest.cache if one.note],
                    "gates_ok": made.ok,
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def with_kept(rows: list[dict[str, Any]], data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return new rows and those of earlier runs that are not measured again, in the table's order.

    ``data`` says of what the rows are: those of another model or other versions are left out.
    """
    file, same = RESULTS / "kv_answers.json", ("samples", "versions", "model_sha256")
    before = json.loads(file.read_text()) if file.exists() else {"rows": []}
    known = {}
    if all(before.get(name) == data[name] for name in same):
        dated = ({"date": before["date"], **row} for row in before["rows"])
        known = {(row["budget"], row["cache"]): row for row in dated}
    known |= {(row["budget"], row["cache"]): row for row in rows}
    places = [(budget, cache) for budget in BUDGETS for cache in (FULL, *CACHES)]
    return [known[place] for place in places if place in known]


def table(data: dict[str, Any]) -> str:
    """Return the results as markdown."""
    lines = [
        "| budget | cache (keys/values) | visual cache of 16 bits, all rows | bytes of a question's"
        " cache | right | same answer as with its full cache |",
        "|---|---|---|---|---|---|",
    ]
    for row in data["rows"]:
        share = row["visual_kv_of_16_bits"]
        smaller = f"{share:.2%} ({1 / share:.0f}×)" if share < 1 else f"{share:.0%}"
        raised = f" (finer: {len(row['notes'])} layers)" if row["notes"] else ""
        lines.append(
            f"| {row['budget']:g} | `{row['cache']}`{raised} | {smaller} | "
            f"{row['cache_bytes_a_question']:,.0f} | {row['right']:.1%} | "
            f"{row['same_as_full_cache']:.1%} |"
        )
    dates = " and ".join(sorted({row["date"] for row in data["rows"]}))
    command = "python testsuite/benchmarks/kv_answers.py"
    told = f"\n{data['samples']} held-out questions; `{command}`, {dates}."
    return "\n".join(lines) + "\n" + told + "\n"


def main() -> None:
    """Measure everything, write the results."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--samples", type=int, default=500)
    flags.add_argument("--out", type=Path, default=RESULTS)
    flags.add_argument("--caches", nargs="+", choices=CACHES, default=CACHES)
    args = flags.parse_args()
    start, starts = time.perf_counter(), range(0, args.samples, AT_ONCE)
    batches = [samples(FIRST_SEED + at, min(AT_ONCE, args.samples - at)) for at in starts]
    with TemporaryDirectory(prefix="tokopt-") as temporary, torch.no_grad():
        place = Path(temporary)
        trained("llava").save_pretrained(place / "model")
        source = place / "two.pt2"
        words = ["export", str(place / "model"), "--decode", "--dynamic", "batch,length"]
        if tokopt_main([*words, "-o", str(source)]):
            raise SystemExit("the export failed")
        rows = rows_of(source, place / "built", batches, args.caches)
    data = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "testsuite/benchmarks/kv_answers.py", *sys.argv[1:]]),
        "samples": args.samples,
        "machine": machine(),
        "versions": versions(),
        "model_sha256": load(archive("llava")).sha256,
        "seconds": round(time.perf_counter() - start, 1),
    }
    data["rows"] = with_kept(rows, data)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "kv_answers.json").write_text(json.dumps(data, indent=1) + "\n")
    (args.out / "kv_answers.md").write_text(table(data))
    if args.out == RESULTS:
        write_page(table(data), START, END)
    print(table(data))


if __name__ == "__main__":
    main()
