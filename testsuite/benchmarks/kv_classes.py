"""Bits by class of token: python testsuite/benchmarks/kv_classes.py.

As in kv_formats.py, but rows of pictures and rows of words of one layer's cache are each stored in
a format of their own, calibrated on all rows.  Says what that loses against the cache as it was, at
how many bytes, and what reading a cache of two formats back costs against one of one format
(processor seconds of one thread, 8,192 rows of 128 channels, an eighth of them words).
Writes results/kv_classes.{json,md} and the table of docs/kv.md.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from testsuite.benchmarks.accuracy import FIRST_SEED, machine
from testsuite.benchmarks.kv_formats import AT_ONCE, RESULTS, SIDES, calibrated, prefilled
from testsuite.benchmarks.kv_formats_table import write_page
from testsuite.models.build import trained
from testsuite.models.digits import IMAGE, samples
from testsuite.models.digits import Samples as Questions
from testsuite.models.family import FAMILIES
from torch import Tensor
from transformers import DynamicCache

from tokopt.passes.kv.format import Format
from tokopt.passes.kv.int4 import Int4
from tokopt.passes.kv.int8 import Int8
from tokopt.passes.kv.kivi import Kivi
from tokopt.passes.kv.samples import Samples
from tokopt.passes.kv.stored import stored_bytes
from tokopt.passes.search.objective import divergence
from tokopt.targets.manifest import versions

FORMATS: dict[str, Format] = {
    "int8": Int8(),
    "int4": Int4(),
    "kivi{group=16 window=0}": Kivi(group=16, window=0),
}
CHOICES = tuple((visual, text) for visual in FORMATS for text in ("int8", "int4"))
LONG, WORDS, TIMES = (1, 2, 8192, 128), 1024, 15
START, END = "<!-- kv_classes -->\n", "<!-- end of kv_classes -->\n"


def scores(model: Any, last: Any, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return what the last token says ``[B, V]`` on a cache."""
    cache = DynamicCache()
    for at, (key, value) in enumerate(layers):
        cache.update(key, value, at)
    out = model.model.language_model(**last, past_key_values=cache, use_cache=True)
    return model.lm_head(out.last_hidden_state[:, -1])


def measured(name: str, model: Any, batches: Sequence[Questions]) -> list[dict[str, Any]]:
    """Return a row for each choice of formats."""
    layers = {label: calibrated(name, model, format) for label, format in FORMATS.items()}
    found = []
    seen = [(asked, prefilled(name, model, asked)) for asked in batches]
    for choice in CHOICES:
        size, full, same, far, right, total = 0, 0, 0, 0.0, 0, 0
        for asked, one in seen:
            image = asked.input_ids[0, :-1] == IMAGE
            read = []
            for at in range(len(one.keys)):
                back = []
                for side in SIDES:
                    rows = one.rows(side)[at]
                    whole = torch.empty_like(rows)
                    for label, which in zip(choice, (image, ~image), strict=True):
                        kept = layers[label][at][side]
                        state = kept.format.quantize(side, rows[:, :, which], kept.constants, None)
                        whole[:, :, which] = kept.format.dequantize(side, state, kept.constants)
                        size += stored_bytes(state)
                    full += 2 * rows.numel()
                    back.append(whole)
                read.append((back[0], back[1]))
            got = scores(model, one.last, read)
            exact = scores(model, one.last, list(zip(one.keys, one.values, strict=True)))
            far += float(divergence(exact, got).sum())
            same += int((got.argmax(-1) == exact.argmax(-1)).sum())
            right += int((got.argmax(-1) == asked.answers).sum())
            total += len(asked.answers)
        row = {"model": name, "visual": choice[0], "text": choice[1], "of_16_bits": size / full}
        row |= {"kl": far / total, "same": same / total, "right": right / total}
        row["visual_rows"], row["rows"] = int(image.sum()), len(image)
        found.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return found


def reading(choice: tuple[str, str]) -> float:
    """Return the processor seconds in which keys of one layer are read back and attended to."""
    source = torch.Generator().manual_seed(0)
    rows, query = torch.randn(LONG, generator=source), torch.randn(1, 2, 1, 128, generator=source)
    parts = [rows[:, :, WORDS:], rows[:, :, :WORDS]] if choice[0] != choice[1] else [rows]
    kept = []
    for label, part in zip(choice, parts, strict=False):
        format = FORMATS[label]
        constants = format.calibrate("value", Samples([rows]))
        kept.append((format, format.quantize("value", part, constants, None), constants))
    found = []
    for _ in range(TIMES):
        start = time.process_time()
        back = [format.dequantize("value", state, own) for format, state, own in kept]
        whole = torch.cat(back, 2) if len(back) > 1 else back[0]
        torch.nn.functional.scaled_dot_product_attention(query, whole, whole)
        found.append(time.process_time() - start)
    return statistics.median(found)


def table(data: dict[str, Any]) -> str:
    """Return the results as markdown."""
    lines = [
        "| model | pictures / words | bytes of 16 bits | KL of the next token, nats | same answer "
        "| right | reading 8,192 rows, of one format |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in data["rows"]:
        pair = f"{row['visual']}/{row['text']}"
        cost = data["seconds"][pair] / data["seconds"][f"{row['visual']}/{row['visual']}"]
        lines.append(
            f"| {row['model']} | `{row['visual']}` / `{row['text']}` | {row['of_16_bits']:.2%} | "
            f"{row['kl']:.5f} | {row['same']:.1%} | {row['right']:.1%} | {cost:.2f}× |"
        )
    told = f"{data['samples']} held-out questions, {data['rows'][0]['visual_rows']} of "
    told += f"{data['rows'][0]['rows']} rows of pictures; "
    told += f"`python testsuite/benchmarks/kv_classes.py`, {data['date']}."
    return "\n".join(lines) + "\n\n" + told + "\n"


def main() -> None:
    """Measure everything, write the results."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--samples", type=int, default=500)
    args = flags.parse_args()
    torch.set_num_threads(1)
    starts = range(0, args.samples, AT_ONCE)
    batches = [samples(FIRST_SEED + at, min(AT_ONCE, args.samples - at)) for at in starts]
    with torch.no_grad():
        models = {name: trained(name) for name in FAMILIES}
        rows = [row for name, model in models.items() for row in measured(name, model, batches)]
        pairs = dict.fromkeys([*CHOICES, *((one, one) for one in FORMATS)])
        seconds = {f"{a}/{b}": reading((a, b)) for a, b in pairs}
    data = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "testsuite/benchmarks/kv_classes.py", *sys.argv[1:]]),
        "samples": args.samples,
        "machine": machine(),
        "versions": versions(),
        "seconds": seconds,
        "rows": rows,
    }
    (RESULTS / "kv_classes.json").write_text(json.dumps(data, indent=1) + "\n")
    (RESULTS / "kv_classes.md").write_text(table(data))
    write_page(table(data), START, END)
    print(table(data))


if __name__ == "__main__":
    main()
