"""Cache bits: the formats of the fewest bits that leave what comes next as it is (``auto``).

Layers start in half precision and go to INT8, then on to INT4, and to KIVI's 2 bits where so few
are allowed, those first whose going alone moves the next token's distribution least: so there is an
order of choices, each of fewer bits than the one before.  Taken is the last of an order's part that
keeps the distribution within ``MOST`` of the original's, found by bisection.  What is measured is
the first step of decode on the prompts at hand, all rows kept.  A search under a ``kv`` budget
takes any of the order, and is judged on what its plan leaves (``next_token.py``).

Keys and values of a layer go apart, but where a target has an operator that wants them in one
format, or where the rows of both wait.  What goes on saves bytes of the rows that a plan leaves,
with as many of them waiting in 16 bits as may.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import sympy
from torch import Tensor

from tokopt.cli.cache_formats import counted, measured
from tokopt.cli.separate import Separate
from tokopt.cli.separate_gates import torch_runner
from tokopt.cli.stored_cache import StoredCache, StoredLayer
from tokopt.ir.decoding import Decoding
from tokopt.ir.errors import InputError
from tokopt.ir.lengths import length_of
from tokopt.ir.tensors import tensor_inputs
from tokopt.passes.kv.asked import Auto
from tokopt.passes.kv.format import Side
from tokopt.passes.kv.layer import OTHER
from tokopt.passes.kv.registry import find_format
from tokopt.passes.kv.windowed import Windowed
from tokopt.passes.search.objective import divergence
from tokopt.targets.base import Runner

MOST = 0.01
"""Nats of KL(all bits ‖ fewer), the mean over prompts: a hundredth moves no clear answer."""

STEPS = {"half": 16, "int8": 8, "int4": 4, "kivi{window=0}": 2}

Part = tuple[int, Side]
"""The keys or the values of a layer."""

Formats = Mapping[Part, str]


@dataclass(frozen=True)
class BitChoices:
    """Ways to store a cache, each of fewer bits than the last; ``usual``: what ``auto`` takes."""

    caches: tuple[StoredCache, ...]
    usual: int


def bit_choices(
    separate: Separate,
    decoding: Decoding | None,
    every: Mapping[str, Tensor],
    asked: Auto = Auto(),  # noqa: B008 (frozen)
) -> BitChoices:
    """Return the choices from half precision on to ``auto``'s, or to the fewest bits (``further``).

    Raises what ``measured`` does of half precision; other formats that cannot store such caches
    are passed over.
    """
    stored = {"half": measured(separate, decoding, every, _both("half"))}
    for name, bits in STEPS.items():
        if name not in stored and bits >= asked.bits and _storable(stored["half"], name):
            stored[name] = measured(separate, decoding, every, _both(name))
    trial = _Trial(separate, stored, every)
    every_part = [(number, side) for number in range(len(stored["half"].layers)) for side in OTHER]
    found: list[Formats] = [dict.fromkeys(every_part, "half")]
    usual, within = 0, True
    for name in list(stored)[1:]:
        nexts = list(_going(trial, found[-1], name, asked))
        if asked.further and isinstance(find_format(name), Windowed):
            within = False  # whether that saves bytes depends on how many rows a plan leaves
        if within:
            gone = _most_within(trial, nexts)
            usual, within = usual + gone, gone == len(nexts)
        found += nexts
        if not (within or asked.further):
            break
    last = len(found) if asked.further else usual + 1
    return BitChoices(tuple(trial.cache(formats) for formats in found[:last]), usual)


def _going(trial: _Trial, now: Formats, name: str, asked: Auto) -> Iterator[Formats]:
    """Yield formats with one more going on to ``name``, those first that lose least alone."""
    together = not asked.apart or isinstance(find_format(name), Windowed)
    parts: list[Sequence[Part]] = [[part] for part in now]
    if together:
        layers = range(len(now) // len(OTHER))
        parts = [[(number, side) for side in OTHER] for number in layers]
    moves = [move for move in parts if trial.saves(move, now, name, asked.tokens)]
    alone = [trial.lost({**now, **dict.fromkeys(move, name)}) for move in moves]
    for at in sorted(range(len(moves)), key=lambda at: (alone[at], at)):
        now = {**now, **dict.fromkeys(moves[at], name)}
        yield now


def _most_within(trial: _Trial, nexts: Sequence[Formats]) -> int:
    """Return how many of the choices, from the first on, keep what comes next as it is."""
    low, high = 0, len(nexts)
    while low < high:
        middle = (low + high + 1) // 2
        lost = trial.lost(nexts[middle - 1])
        low, high = (middle, high) if lost <= MOST else (low, middle - 1)
    return low


def _storable(cache: StoredCache, name: str) -> bool:
    """Return whether heads are as wide as a format wants, and caches free where it codes blocks."""
    format, graph = find_format(name), cache.separate.program.graphs[cache.decoding.program]
    values = {one.name: one.value for one in tensor_inputs(graph)}
    for one, kept in cache.by_cache():
        rows, width = length_of(values[one.input].shape[2]), int(values[one.input].shape[3])
        if isinstance(format, Windowed) and not isinstance(rows, sympy.Symbol):
            return False
        try:
            format.check_width(kept.side, width)
        except InputError:
            return False
    return True


def _both(name: str) -> Mapping[Side, str]:
    return {"key": name, "value": name}


class _Trial:
    """Runs the first step of decode on caches that were stored and read back."""

    def __init__(
        self, separate: Separate, stored: Mapping[str, StoredCache], every: Mapping[str, Tensor]
    ) -> None:
        first = next(iter(stored.values()))
        how, graphs, chain = first.decoding, separate.program.graphs, separate.original
        entry = next(one for one in chain.programs if one.name == how.program)
        self.decode: Runner = torch_runner(graphs)(entry)
        self.given = dict(chain.run(torch_runner(graphs), every)[how.program][0])
        self.logits, self.first = how.next_logits, first
        self.stored = stored
        self.full = self.decode(self.given)[self.logits][:, -1]
        self.read = {
            (name, number, side): self._read(cache, number, side)
            for name, cache in stored.items()
            for number in range(len(cache.layers))
            for side in cache.layers[number].kept
        }

    def cache(self, formats: Formats) -> StoredCache:
        """Return the cache of which each side of a layer is in a format."""
        layers = tuple(self._layer(number, formats) for number in range(len(self.first.layers)))
        return StoredCache(self.first.decoding, self.first.separate, layers)

    def _layer(self, number: int, formats: Formats) -> StoredLayer:
        kept = {
            side: self.stored[formats[number, side]].layers[number].kept[side] for side in OTHER
        }
        return counted(self.first.layers[number].caches, kept, self.given, "")

    def saves(self, move: Sequence[Part], now: Formats, name: str, tokens: float) -> bool:
        """Return whether a format takes fewer bytes of the share of rows that is left."""
        number = move[0][0]
        rows = self.given[self.first.layers[number].caches.key.input].shape[2]
        left = max(int(rows * tokens), 1)
        after = {**now, **dict.fromkeys(move, name)}
        before, then = (
            StoredCache(self.first.decoding, self.first.separate, (self._layer(number, one),))
            for one in (now, after)
        )
        return then.records[0].share(left) < before.records[0].share(left)

    def _read(self, cache: StoredCache, number: int, side: Side) -> Tensor:
        layer = cache.layers[number]
        kept, rows = layer.kept[side], self.given[layer.caches.side(side).input]
        return kept.format.dequantize(side, kept.stored(rows), kept.constants).to(rows.dtype)

    def lost(self, formats: Formats) -> float:
        """Return the mean divergence of the next token with each side of a layer in a format."""
        given = dict(self.given)
        for (number, side), name in formats.items():
            cache = self.first.layers[number].caches.side(side)
            given[cache.input] = self.read[name, number, side]
        return float(divergence(self.full, self.decode(given)[self.logits][:, -1]).mean())
