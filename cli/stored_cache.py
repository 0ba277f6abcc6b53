"""Stored cache: how decode's layers store their keys and values, and the programs that do so.

Formats are asked for or taken from a plan.  What they must know of a layer's rows (scales, centres)
is measured on the original's own caches, before any row is dropped: so one decode serves every
budget.  It goes into the programs, and beside them into a file that a plan is applied with again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tokopt.cli.inputs import read_inputs
from tokopt.cli.separate import Separate
from tokopt.cli.separate_gates import torch_runner
from tokopt.ir.cache import Cache
from tokopt.ir.cache_sides import LayerCache, find_layer_caches
from tokopt.ir.decoding import Decoding
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.part import Part, own_name
from tokopt.ir.plan import Caching
from tokopt.ir.tensors import tensor_outputs
from tokopt.passes.kv.format import Side
from tokopt.passes.kv.half import Half
from tokopt.passes.kv.layer import OTHER, chosen_layer
from tokopt.passes.kv.program import Kept, with_stored
from tokopt.passes.kv.registry import find_format
from tokopt.passes.kv.samples import Rotary, Samples
from tokopt.passes.kv.stored import bytes_per_token
from tokopt.targets.chained import Chain
from tokopt.targets.manifest import CachedLayer

CACHE = "cache.safetensors"
"""The file of an artifact with what formats measured: ``<layer>.<side>.<name>``."""

FULL = 2
"""Bytes of a value in 16 bits, against which a cache is counted."""


@dataclass(frozen=True)
class StoredLayer:
    """One layer's caches, how both are stored, why not as asked (else empty), and bytes a row.

    ``full``: bytes of a row of both sides in 16 bits; ``bytes`` as stored, all heads.
    """

    caches: LayerCache
    kept: Mapping[Side, Kept]
    note: str
    bytes: float
    full: float


@dataclass(frozen=True)
class StoredCache:
    """The layers in the order they run; ``decode`` and what hands the caches on are programs."""

    decoding: Decoding
    separate: Separate
    layers: tuple[StoredLayer, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """What a row costs against 16 bits, layer by layer."""
        return tuple(one.bytes / one.full for one in self.layers)

    @property
    def entries(self) -> tuple[Caching, ...]:
        """Return what a plan says of it."""
        names = [{s: k.format.name for s, k in one.kept.items()} for one in self.layers]
        return tuple(Caching(i, n["key"], n["value"]) for i, n in enumerate(names))

    @property
    def records(self) -> tuple[CachedLayer, ...]:
        """Return what the manifest says of it."""
        pairs = zip(self.entries, self.layers, strict=True)
        return tuple(
            CachedLayer(entry.layer, entry.key, entry.value, one.bytes, one.full, one.note)
            for entry, one in pairs
        )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was measured, by the names of the file."""
        return {
            f"{number}.{side}.{name}": value
            for number, layer in enumerate(self.layers)
            for side, kept in layer.kept.items()
            for name, value in kept.constants.items()
        }

    def by_cache(self) -> Iterator[tuple[Cache, Kept]]:
        """Yield every cache and how it is stored."""
        for layer in self.layers:
            for side, kept in layer.kept.items():
                yield layer.caches.side(side), kept

    @property
    def coarse(self) -> float:
        """By how much of its size a cache may be off, in the mean of a head (``Format``)."""
        return max(kept.format.tolerance for _, kept in self.by_cache())

    def read(self, chain: Chain, outer: str, value: Tensor) -> Tensor:
        """Return the rows of an outer output that is a stored cache; others as they are."""
        names = {place: name for place, name in chain.outputs.items()}
        kept = {cache.input: how for cache, how in self.by_cache()}
        for link in chain.links:
            if link.target == self.decoding.program and link.input in kept:
                if names.get((link.source, link.output)) == outer:
                    how = kept[link.input]
                    return how.read(torch.float32, value, how.constants)
        return value

    def programs(self, parts: Mapping[str, Part], raised: bool = False) -> dict[str, Part]:
        """Return programs of which decode, and what hands it its caches, store them.

        ``raised``: attention over them is one operator of the dialect, where it can be.
        """
        decode = self.decoding.program
        kept = {cache.input: one for cache, one in self.by_cache()}
        inputs: dict[str, dict[str, Kept]] = {decode: kept}
        outputs: dict[str, dict[str, Kept]] = {decode: {}}
        for cache, one in self.by_cache():
            graph = self.separate.program.graphs[decode]
            outputs[decode][own_name(cache.output, graph)] = one
        for link in self.separate.links:
            if link.target == decode and link.input in kept:
                name = own_name(link.output, parts[link.source].exported)
                outputs.setdefault(link.source, {})[name] = kept[link.input]
        return {
            name: part
            if name not in outputs
            else _stored(part, inputs.get(name, {}), outputs[name], raised)
            for name, part in parts.items()
        }


def _stored(
    part: Part, inputs: Mapping[str, Kept], outputs: Mapping[str, Kept], raised: bool
) -> Part:
    places = [tensor.place for tensor in tensor_outputs(part.exported)]
    by_place = {places[part.outputs.index(name)]: kept for name, kept in outputs.items()}
    return replace(part, exported=with_stored(part.exported, inputs, by_place, raised))


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
    rotary = None if turning is None else Rotary(turning.width, turning.interleaved)
    keys, values = rows[layer.key.input], rows[layer.value.input]
    samples: dict[Side, Samples] = {"key": Samples([keys], rotary), "value": Samples([values])}
    chosen = chosen_layer({side: find_format(names[side]) for side in OTHER}, samples)
    notes = [text for text in (note, *(one.note for one in chosen.values())) if text]
    kept = {
        side: Kept(f"cache_{number}_{side}", side, one.format, one.constants)
        for side, one in chosen.items()
    }
    return _counted(layer, kept, rows, "; ".join(notes))


def _counted(
    layer: LayerCache, kept: Mapping[Side, Kept], rows: Mapping[str, Tensor], note: str
) -> StoredLayer:
    """Count what a row costs, from the tensors that it becomes."""
    stored, full = 0.0, 0.0
    for side, one in kept.items():
        seen = rows[layer.side(side).input]
        stored += bytes_per_token({"": one.store(seen, one.constants)}, seen)
        full += FULL * seen.shape[1] * seen.shape[3]
    return StoredLayer(layer, kept, note, stored, full)


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
        found.append(_counted(layer, kept, rows, ""))
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
