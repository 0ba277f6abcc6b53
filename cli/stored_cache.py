"""Stored cache: how decode's layers store their keys and values, and the programs that do so.

Formats are asked for or taken from a plan.  What they must know of a layer's rows (scales, centres;
``cache_formats.py``) goes into the programs, and beside them into a file that a plan is applied
with again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from tokopt.cli.cache_coders import CoderProgram, coders_of, salience_of
from tokopt.cli.separate import Separate
from tokopt.ir.cache import Cache
from tokopt.ir.cache_sides import LayerCache
from tokopt.ir.decoding import Decoding
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.links import Link
from tokopt.ir.part import Part, own_name
from tokopt.ir.plan import Caching
from tokopt.ir.tensors import tensor_inputs, tensor_outputs
from tokopt.passes.kv.format import Side
from tokopt.passes.kv.kept import Kept
from tokopt.passes.kv.program import ranked, with_stored
from tokopt.passes.kv.salient import with_salience
from tokopt.passes.validate import run_program
from tokopt.targets.chained import Chain
from tokopt.targets.manifest import CachedLayer

Inputs = Mapping[str, Tensor]

CACHE = "cache.safetensors"
"""The file of an artifact with what formats measured: ``<layer>.<side>.<name>``."""


@dataclass(frozen=True)
class StoredLayer:
    """One layer's caches, how both are stored, why not as asked (else empty), and bytes a row.

    ``full``: bytes of a row of both sides in 16 bits; ``bytes`` as stored, all heads, where it does
    not wait: up to ``window`` rows do.
    """

    caches: LayerCache
    kept: Mapping[Side, Kept]
    note: str
    bytes: float
    full: float
    window: int = 0


@dataclass(frozen=True)
class StoredCache:
    """The layers in the order they run; ``decode`` and what hands the caches on are programs."""

    decoding: Decoding
    separate: Separate
    layers: tuple[StoredLayer, ...]

    @property
    def entries(self) -> tuple[Caching, ...]:
        """Return what a plan says of it."""
        names = [{s: k.format.text for s, k in one.kept.items()} for one in self.layers]
        return tuple(Caching(i, n["key"], n["value"]) for i, n in enumerate(names))

    @property
    def records(self) -> tuple[CachedLayer, ...]:
        """Return what the manifest says of it."""
        pairs = zip(self.entries, self.layers, strict=True)
        return tuple(
            CachedLayer(e.layer, e.key, e.value, one.bytes, one.full, one.note, one.window)
            for e, one in pairs
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

    def saliences(
        self, parts: Mapping[str, Part], links: Sequence[Link], given: Mapping[str, Inputs]
    ) -> dict[str, Tensor]:
        """Return the salience of a prompt's rows by decode's inputs, of pools alone.

        ``parts`` are the programs with the cache in full, ``given`` what each takes.
        """
        kept, found = {cache.input: one for cache, one in self.by_cache()}, dict[str, Tensor]()
        for source, part in parts.items():
            own = [x for x in links if x.source == source and x.target == self.decoding.program]
            own = [x for x in own if x.input in kept and kept[x.input].parts]
            if own:
                names = [own_name(x.output, part.exported) for x in own]
                places = [tensor.place for tensor in tensor_outputs(part.exported)]
                sides = {
                    places[part.outputs.index(name)]: kept[x.input].side
                    for name, x in zip(names, own, strict=True)
                }
                values = run_program(with_salience(part.exported, sides), given[source], full=True)
                found |= zip((x.input for x in own), values[-len(own) :], strict=True)
        return found

    @property
    def coarse(self) -> float:
        """By how much of its size a cache may be off, in the mean of a head (``Format``)."""
        return max(kept.format.tolerance for _, kept in self.by_cache())

    def read(self, chain: Chain, outer: str, value: Tensor) -> Tensor:
        """Return the rows of an outer output that is a stored cache; others as they are.

        Raises ``UnsupportedError`` for a cache of pools, whose rows lie in another order.
        """
        names = {place: name for place, name in chain.outputs.items()}
        kept = {cache.input: how for cache, how in self.by_cache()}
        for link in chain.links:
            if link.target == self.decoding.program and link.input in kept:
                if names.get((link.source, link.output)) == outer:
                    if kept[link.input].parts:
                        raise UnsupportedError(
                            "the target ranks near-ties otherwise, and a cache of pools can then "
                            "not be compared row by row",
                            where=outer,
                            hint="another method or budget, or a cache in int8, int4 or kivi",
                        )
                    return kept[link.input].alone(value)
        return value

    def parted(
        self, parts: Mapping[str, Part], links: Sequence[Link], budget: str
    ) -> tuple[dict[str, Part], Chain]:
        """Return ``programs`` with those that code rows between calls, and how all of them run."""
        made, coders = self.programs(parts), self._coders
        chain = self.separate.chained(made, [*links, *self._of_parts(parts, links)], budget)
        decode, entries = self.decoding.program, tuple(one.entry for one in coders)
        every = (replace(p, coders=entries) if p.name == decode else p for p in chain.programs)
        taken = made.keys() & {one.entry.name for one in coders}
        if taken:
            raise UnsupportedError(f"the archive has a program {taken.pop()!r} already")
        return {**made, **{c.entry.name: c.part for c in coders}}, replace(
            chain, programs=tuple(every)
        )

    def _of_parts(self, parts: Mapping[str, Part], links: Sequence[Link]) -> Iterator[Link]:
        """Yield the links of coded tensors that prefill hands on."""
        kept = {cache.input: one for cache, one in self.by_cache()}
        for link in links:
            if link.target == self.decoding.program and link.input in kept:
                name, one = own_name(link.output, parts[link.source].exported), kept[link.input]
                for part in one.parts:
                    given = one.input_of(link.input, part)
                    yield Link(link.source, one.input_of(name, part), link.target, given)

    @property
    def _coders(self) -> list[CoderProgram]:
        decode = self.decoding.program
        inputs = tensor_inputs(self.separate.program.graphs[decode])
        return coders_of(decode, self.by_cache(), {t.name: t.value for t in inputs})

    def programs(self, parts: Mapping[str, Part]) -> dict[str, Part]:
        """Return programs of which decode, and what hands it its caches, store them."""
        return {name: self.program(name, parts) for name in parts}

    def program(self, name: str, parts: Mapping[str, Part], raised: bool = False) -> Part:
        """Return the one of ``programs`` by its name.

        ``raised``: attention over caches is one operator of the dialect, where it can be.
        """
        part, inputs, outputs = parts[name], *self._of(name, parts)
        if not inputs and not outputs:
            return part
        return _stored(part, inputs, outputs, raised)

    def _of(self, name: str, parts: Mapping[str, Part]) -> tuple[dict[str, Kept], dict[str, Kept]]:
        """Return how a program's inputs and outputs are stored, by name."""
        decode = self.decoding.program
        kept = {cache.input: one for cache, one in self.by_cache()}
        if name == decode:
            graph = self.separate.program.graphs[decode]
            return kept, {own_name(cache.output, graph): one for cache, one in self.by_cache()}
        given = [
            (own_name(link.output, parts[name].exported), kept[link.input])
            for link in self.separate.links
            if link.source == name and link.target == decode and link.input in kept
        ]
        return {}, dict(given)


def _stored(
    part: Part, inputs: Mapping[str, Kept], outputs: Mapping[str, Kept], raised: bool
) -> Part:
    places = [tensor.place for tensor in tensor_outputs(part.exported)]
    by_place = {places[part.outputs.index(name)]: kept for name, kept in outputs.items()}
    exported = with_stored(part.exported, inputs, by_place, raised)
    further = [kept.input_of(n, p) for n, kept in outputs.items() if not inputs for p in kept.parts]
    further += [salience_of(name) for name in ranked(inputs)]
    return Part(exported, (*part.outputs, *further))
