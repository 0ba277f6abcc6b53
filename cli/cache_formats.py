"""Cache formats: what formats must know of each layer's rows, measured or read from a file.

Measured on the original's own caches, before any row is dropped: so one decode serves every budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tokopt.cli.inputs import read_inputs
from tokopt.cli.separate import Separate
from tokopt.cli.separate_gates import torch_runner
from tokopt.cli.stored_cache import StoredCache, StoredLayer
from tokopt.ir.cache_sides import LayerCache, find_layer_caches
from tokopt.ir.decoding import Decoding
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.plan import Caching
from tokopt.passes.kv.format import WINDOW, Side
from tokopt.passes.kv.half import Half
from tokopt.passes.kv.kept import Kept
from tokopt.passes.kv.layer import OTHER, chosen_layer
from tokopt.passes.kv.registry import find_format
from tokopt.passes.kv.samples import Rotary, Samples
from tokopt.passes.kv.stored import bytes_per_token

MANY = 8
"""Times as many rows as are coded at once: what a row costs is counted of so many."""

FULL = 2
"""Bytes of a value in 16 bits, against which a cache is counted."""


def measured(
    separate: Separate,
    decoding: Decoding | None,
    every: Mapping[str, Tensor],
    wanted: Mapping[Side, str] | Sequence[Caching],
) -> StoredCache:
    """Return formats with what they measure on inputs, finer ones where outliers ask for that.

    ``wanted``: the formats of all layers, or of each.  Raises ``UnsupportedError`` where how decode
    takes its caches is not known.
    """
    how, layers = _layers(separate, decoding)
    rows, found = _rows(separate, how, every), []
    formats = _formats(wanted, len(layers))
    for number, (layer, names) in enumerate(zip(layers, formats, strict=True)):
        found.append(_measured(number, layer, names, rows))
    return StoredCache(how, separate, tuple(found))


def _measured(
    number: int, layer: LayerCache, names: Mapping[Side, str], rows: Mapping[str, Tensor]
) -> StoredLayer:
    turning, note, names = layer.turning, "", dict(names)
    if not layer.known and names["key"] != Half.name:
        note, names["key"] = "how positions turn keys is not known: half precision", Half.name
        if find_format(names["value"]).pooled:  # both lie in one order
            names["value"] = Half.name
    rotary = None if turning is None else Rotary(turning.width, turning.interleaved)
    keys, values = rows[layer.key.input], rows[layer.value.input]
    samples: dict[Side, Samples] = {"key": Samples([keys], rotary), "value": Samples([values])}
    chosen = chosen_layer({side: find_format(names[side]) for side in OTHER}, samples)
    notes = [text for text in (note, *(one.note for one in chosen.values())) if text]
    kept = {
        side: Kept(f"cache_{number}_{side}", side, one.format, one.constants)
        for side, one in chosen.items()
    }
    return counted(layer, kept, rows, "; ".join(notes))


def counted(
    layer: LayerCache, kept: Mapping[Side, Kept], rows: Mapping[str, Tensor], note: str
) -> StoredLayer:
    """Count what a row costs, from the tensors that it becomes."""
    stored, full, window = 0.0, 0.0, 0
    for side, one in kept.items():
        seen, windowed = rows[layer.side(side).input], one.windowed
        if windowed is None:
            stored += bytes_per_token({"": one.handed(seen)}, seen)
        else:  # of many rows, whatever they are, what is coded of them
            many = seen[:, :, :1].expand(-1, -1, windowed.waits + MANY * windowed.unit, -1)
            state = one.stored(many, torch.zeros(many.shape[:3]))
            waiting = state.pop(WINDOW)
            stored += bytes_per_token(state, many[:, :, waiting.shape[2] :])
            window = max(window, windowed.waiting)
        full += FULL * seen.shape[1] * seen.shape[3]
    return StoredLayer(layer, kept, note, stored, full, window)


def read(
    separate: Separate,
    decoding: Decoding | None,
    every: Mapping[str, Tensor],
    entries: Sequence[Caching],
    file: Path,
) -> StoredCache:
    """Return the formats of a plan with what an artifact's file has of them.

    Raises ``InputError`` where the file lacks something, or has more.
    """
    how, layers = _layers(separate, decoding)
    tensors, rows = read_inputs(file), _rows(separate, how, every)
    found = []
    for number, (layer, names) in enumerate(
        zip(layers, _formats(entries, len(layers)), strict=True)
    ):
        kept = {}
        for side in OTHER:
            start = f"{number}.{side}."
            own = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
            name = f"cache_{number}_{side}"
            kept[side] = Kept(name, side, find_format(names[side]), own)
        found.append(counted(layer, kept, rows, ""))
    cache = StoredCache(how, separate, tuple(found))
    if cache.tensors.keys() != tensors.keys():
        raise InputError("these are measurements of another cache", where=str(file))
    return cache


def _formats(
    wanted: Mapping[Side, str] | Sequence[Caching], layers: int
) -> Sequence[Mapping[Side, str]]:
    if isinstance(wanted, Mapping):
        return [wanted] * layers
    if len(wanted) != layers:
        raise InputError(
            f"the plan says how {len(wanted)} layers store their cache, and decode has {layers}"
        )
    return [{"key": one.key, "value": one.value} for one in wanted]


def _layers(
    separate: Separate, decoding: Decoding | None
) -> tuple[Decoding, tuple[LayerCache, ...]]:
    if decoding is None:
        raise UnsupportedError(
            "a cache can be stored in few bits where one decode program takes it, grows it by cat "
            "and gives it back, and none here does",
            where=separate.program.source,
            hint="export with `tokopt export --decode`",
        )
    graph = separate.program.graphs[decoding.program]
    return decoding, find_layer_caches(graph, decoding.caches)


def _rows(separate: Separate, how: Decoding, every: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the caches that the original's prompts leave, by decode's inputs."""
    original = separate.original
    ran = original.run(torch_runner(separate.program.graphs), every)
    links = [link for link in original.links if link.target == how.program]
    return {link.input: ran[link.source][1][link.output] for link in links}
