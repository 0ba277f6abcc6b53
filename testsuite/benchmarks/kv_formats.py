"""Error, bits and answers of every cache format: python testsuite/benchmarks/kv_formats.py.

Keys and values of the trained models (testsuite/models): the decoder reads all of a prompt but its
last token, the cache is stored in a format and read back, and the last token is decoded on that.
Scales are calibrated on training pictures; errors and answers are of held-out ones.  Bits are
counted from the stored tensors.  Writes results/kv_formats.{json,md} and the tables of docs/kv.md.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from testsuite.benchmarks.accuracy import FIRST_SEED, machine
from testsuite.benchmarks.kv_formats_table import table, write_page
from testsuite.models.build import archive, trained
from testsuite.models.digits import IMAGE, PROMPT, samples
from testsuite.models.digits import Samples as Questions
from testsuite.models.family import FAMILIES
from torch import Tensor
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokopt.ir.load import load
from tokopt.passes.kv.format import Format, Side
from tokopt.passes.kv.fp8 import Fp8
from tokopt.passes.kv.half import Half
from tokopt.passes.kv.headroom import Chosen
from tokopt.passes.kv.int4 import Int4
from tokopt.passes.kv.int8 import Int8
from tokopt.passes.kv.kivi import Kivi
from tokopt.passes.kv.layer import chosen_layer
from tokopt.passes.kv.salience import probe_rows, probed_salience, text_salience
from tokopt.passes.kv.samples import Rotary, Samples
from tokopt.passes.kv.stored import bits_per_value, bytes_per_token
from tokopt.passes.kv.vidkv import VidKv
from tokopt.passes.kv.zipcache import ZipCache
from tokopt.targets.manifest import versions

FORMATS: Mapping[str, Format] = {
    "half": Half(),
    "int8": Int8(),
    "fp8": Fp8(),
    "int4": Int4(),
    "kivi{bits=4,window=0}": Kivi(4, window=0),
    "kivi": Kivi(),
    "kivi{window=32}": Kivi(window=32),
    "kivi{window=0}": Kivi(window=0),
    "zipcache": ZipCache(),
    "vidkv": VidKv(),
}
SIDES: tuple[Side, Side] = ("key", "value")
CALIBRATION, AT_ONCE, LONG = 32, 50, (1, 2, 8192, 128)
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Prefilled:
    """A prompt but its last token: per layer keys, values, queries; its salience by format."""

    keys: list[Tensor]
    values: list[Tensor]
    saliences: Mapping[str, list[Tensor]]
    last: Mapping[str, Tensor]

    def rows(self, side: Side) -> list[Tensor]:
        """Return the rows of all layers."""
        return self.keys if side == "key" else self.values


def prefilled(name: str, model: Any, asked: Questions) -> Prefilled:
    """Read a prompt; positions are applied to the keys, as in any cache."""
    family, queries = FAMILIES[name], list[Tensor]()

    def recording(module: Any, query: Tensor, *rest: Any, **options: Any) -> Any:
        queries.append(query)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, *rest, **options)

    ALL_ATTENTION_FUNCTIONS.register("recording", recording)
    ALL_MASK_ATTENTION_FUNCTIONS.register("recording", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    image = asked.input_ids == IMAGE
    rows, _ = family.visual_rows(model, asked.pixel_values)
    words = model.get_input_embeddings()(asked.input_ids)
    merged = words.masked_scatter(image[..., None], rows)
    decoder, count = model.model.language_model, PROMPT - 1
    places = family.position_ids(torch.arange(PROMPT).expand(len(image), -1))
    decoder.config._attn_implementation = "recording"
    cache = decoder(
        inputs_embeds=merged[:, :count],
        attention_mask=torch.ones(len(image), count, dtype=torch.int64),
        position_ids=places[..., :count],
        past_key_values=DynamicCache(),
        use_cache=True,
    ).past_key_values
    decoder.config._attn_implementation = "sdpa"
    keys, values = [x.keys for x in cache.layers], [x.values for x in cache.layers]
    probes, scale = probe_rows(count), keys[0].shape[3] ** -0.5
    pairs = zip(queries, keys, strict=True)
    probed = [probed_salience(query[:, :, probes], key, probes, scale) for query, key in pairs]
    near = text_salience(merged[:, :count], ~image[:, :count], keys[0].shape[1])
    last = {"inputs_embeds": merged[:, count:], "position_ids": places[..., count:]}
    return Prefilled(keys, values, {"zipcache": probed, "vidkv": [near] * len(keys)}, last)


def rotary(name: str, model: Any, items: int) -> tuple[Rotary, Tensor]:
    """Return how positions turn keys, and the position of each row and pair of channels."""
    decoder, count = model.model.language_model, PROMPT - 1
    frequencies = decoder.rotary_emb.inv_freq
    most = decoder.config.max_position_embeddings
    places = FAMILIES[name].position_ids(torch.arange(count).expand(items, -1))
    if places.ndim == 3:  # time, row and column: each turns pairs of its own
        sections = decoder.config.rope_parameters["mrope_section"]
        of_axis = [
            axis[..., None].expand(-1, -1, n) for axis, n in zip(places, sections, strict=True)
        ]
        places = torch.cat(of_axis, -1)
    return Rotary(2 * len(frequencies), False, frequencies, most), places


def calibrated(name: str, model: Any, format: Format) -> list[dict[Side, Chosen]]:
    """Return the format of each side of each layer, from pictures of the training split."""
    seen = prefilled(name, model, samples(0, CALIBRATION, "train"))
    turning, places = rotary(name, model, CALIBRATION)
    wanted: dict[Side, Format] = {side: format for side in SIDES}
    pairs = zip(seen.keys, seen.values, strict=True)
    return [
        chosen_layer(wanted, {"key": Samples([key], turning, [places]), "value": Samples([value])})
        for key, value in pairs
    ]


def decoded(model: Any, seen: Prefilled, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the answers ``[B]`` that the last token gives on a cache."""
    cache = DynamicCache()
    for at, (key, value) in enumerate(layers):
        cache.update(key, value, at)
    out = model.model.language_model(**seen.last, past_key_values=cache, use_cache=True)
    return model.lm_head(out.last_hidden_state[:, -1]).argmax(-1)


def measured(name: str, model: Any, label: str, batches: Sequence[Questions]) -> dict[str, Any]:
    """Store and read back the cache of every batch; return what it cost and what was answered."""
    format, error, norm = FORMATS[label], {s: 0.0 for s in SIDES}, {s: 0.0 for s in SIDES}
    layers = calibrated(name, model, format)
    bits: dict[Side, list[float]] = {side: [] for side in SIDES}
    stored_bytes, right, same = 0.0, 0, 0
    for asked in batches:
        seen = prefilled(name, model, asked)
        saliences = seen.saliences.get(format.name, [None] * len(layers))
        read: list[tuple[Tensor, Tensor]] = []
        for at, layer in enumerate(layers):
            back = []
            for side in SIDES:
                one, rows = layer[side], seen.rows(side)[at]
                state = one.format.quantize(side, rows, one.constants, saliences[at])
                back.append(one.format.dequantize(side, state, one.constants))
                before = one.format.arrange(rows, saliences[at])
                error[side] += float((back[-1] - before).square().sum())
                norm[side] += float(before.square().sum())
                bits[side].append(bits_per_value(state, rows))
                stored_bytes += bytes_per_token(state, rows) / len(layers) / len(batches)
            read.append((back[0], back[1]))
        answers = decoded(model, seen, read)
        exact = decoded(model, seen, list(zip(seen.keys, seen.values, strict=True)))
        right += int((answers == asked.answers).sum())
        same += int((answers == exact).sum())
    heads, width = seen.keys[0].shape[1], seen.keys[0].shape[3]
    total = sum(len(asked.answers) for asked in batches)
    notes = [one.note for layer in layers for one in layer.values() if one.note]
    return {
        "model": name,
        "format": label,
        "bits": {side: sum(found) / len(found) for side, found in bits.items()},
        "bytes_per_token_and_layer": stored_bytes,
        "fp16_bytes_per_token_and_layer": 2 * 2 * heads * width,
        "error": {side: (error[side] / norm[side]) ** 0.5 for side in SIDES},
        "right": right / total,
        "same_as_unstored": same / total,
        "raised": len(notes),
        "notes": sorted(set(notes)),
    }


def long_bits(label: str) -> dict[str, float]:
    """Return bits per value of 8,192 rows of width 128, of tensors of that size."""
    format, found = FORMATS[label], {}
    rows = torch.randn(LONG, generator=torch.Generator().manual_seed(0))
    for side in SIDES:
        constants = format.calibrate(side, Samples([rows[:, :, :512]]))
        state = format.quantize(side, rows, constants, rows[..., 0])
        found[side] = bits_per_value(state, rows)
    return found


def main() -> None:
    """Measure everything, write the results."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--samples", type=int, default=500)
    flags.add_argument("--out", type=Path, default=RESULTS)
    args = flags.parse_args()
    torch.set_num_threads(1)
    start, rows, starts = time.perf_counter(), [], range(0, args.samples, AT_ONCE)
    batches = [samples(FIRST_SEED + at, min(AT_ONCE, args.samples - at)) for at in starts]
    with torch.no_grad():
        for name in FAMILIES:
            model = trained(name)
            for label in FORMATS:
                rows.append(measured(name, model, label, batches))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        data = {
            "date": datetime.now(UTC).date().isoformat(),
            "command": shlex.join(["python", "testsuite/benchmarks/kv_formats.py", *sys.argv[1:]]),
            "samples": args.samples,
            "machine": machine(),
            "versions": versions(),
            "models_sha256": {name: load(archive(name)).sha256 for name in FAMILIES},
            "seconds": round(time.perf_counter() - start, 1),
            "long": {label: long_bits(label) for label in FORMATS},
            "rows": rows,
        }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "kv_formats.json").write_text(json.dumps(data, indent=1) + "\n")
    (args.out / "kv_formats.md").write_text(table(data))
    if args.out == RESULTS:
        write_page(table(data))
    print(table(data))


if __name__ == "__main__":
    main()
