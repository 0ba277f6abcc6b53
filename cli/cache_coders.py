"""Cache coders: the programs that code rows which leave the windows of stored caches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, count

from torch import Tensor

from tokopt.ir.cache import Cache
from tokopt.ir.part import Part
from tokopt.passes.kv.coder import coder_of
from tokopt.passes.kv.kept import Kept
from tokopt.targets.parts import part_named
from tokopt.targets.programs import CodedCache, Coder
from tokopt.targets.signature import signature_of


@dataclass(frozen=True)
class CoderProgram:
    """A program that codes rows, and what the manifest says of it."""

    part: Part
    entry: Coder


def coders_of(
    decode: str, caches: Iterable[tuple[Cache, Kept]], values: Mapping[str, Tensor]
) -> list[CoderProgram]:
    """Return a program for each way in which rows of windows are coded, and of which caches.

    ``values`` are what is recorded of the inputs of ``decode``, by name.
    """
    alike: dict[tuple[object, ...], list[tuple[Cache, Kept]]] = {}
    saliences, every = dict[str, str](), list(caches)
    for number in range(0, len(every), 2):  # of a layer's two caches
        layer = {kept.side: one.input for one, kept in every[number : number + 2]}
        saliences |= dict.fromkeys(layer.values(), salience_of(layer["key"]))
    for one, kept in every:
        if kept.windowed is not None:
            value = values[one.input]
            form = (kept.format, kept.side, int(value.shape[1]), int(value.shape[3]), value.dtype)
            own = (one.input,) if kept.constants else ()
            alike.setdefault((*form, *own), []).append((one, kept))
    found, used = list[CoderProgram](), set[str]()
    for members in alike.values():
        first, kept = members[0]
        format = kept.windowed
        assert format is not None
        exported, names = coder_of(kept, values[first.input])
        plain = f"{decode}-{format.name}-{kept.side}"
        name = next(
            n for n in chain([plain], map(f"{plain}-{{}}".format, count(2))) if n not in used
        )
        used.add(name)
        served = tuple(
            CodedCache(
                c.input,
                {n: how.input_of(c.input, n) for n in names},
                {how.input_of(c.input, n): each for n, each in format.counted(how.side).items()},
                saliences[c.input] if format.ranks else None,
            )
            for c, how in members
        )
        entry = Coder(
            name,
            part_named(name),
            signature_of(exported, names),
            follows=True,
            unit=format.unit,
            waits=format.waits,
            pooled=format.pooled,
            caches=served,
        )
        found.append(CoderProgram(Part(exported, names), entry))
    return found


def salience_of(keys: str) -> str:
    """Return the output of decode with the salience of a layer's rows, by the cache of its keys."""
    return f"{keys}_salience"
