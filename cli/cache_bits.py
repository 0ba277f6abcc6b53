"""Cache bits: the formats of the fewest bits that leave what comes next as it is (``auto``).

Layers start in half precision and go to INT8, then on to INT4, and to KIVI's 2 bits where so few
are allowed, those first whose going alone moves the next token's distribution least.  As many go as
keep it within ``MOST`` of the original's, measured with all of them gone: a longest prefix, found
by bisection.  What is measured is the first step of decode on the prompts at hand, all rows kept.
Both sides of a layer go together: runtimes have kernels for keys and values in one format.  A layer
goes on only where that saves bytes of the rows that a plan leaves, with as many of them waiting in
16 bits as may.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import sympy
from torch import Tensor

from tokopt.cli.cache_formats import measured
from tokopt.cli.separate import Separate
from tokopt.cli.separate_gates import torch_runner
from tokopt.cli.stored_cache import StoredCache
from tokopt.ir.decoding import Decoding
from tokopt.ir.errors import InputError
from tokopt.ir.lengths import length_of
from tokopt.ir.plan import Caching
from tokopt.ir.tensors import tensor_inputs
from tokopt.passes.kv.asked import Auto
from tokopt.passes.kv.format import Side
from tokopt.passes.kv.registry import find_format
from tokopt.passes.kv.windowed import Windowed
from tokopt.passes.search.objective import divergence
from tokopt.targets.base import Runner

MOST = 0.01
"""Nats of KL(all bits ‖ fewer), the mean over prompts: a hundredth moves no clear answer."""

STEPS = {"half": 16, "int8": 8, "int4": 4, "kivi{window=0}": 2}


def fewest_bits(
    separate: Separate,
    decoding: Decoding | None,
    every: Mapping[str, Tensor],
    asked: Auto = Auto(),  # noqa: B008 (frozen)
) -> tuple[Caching, ...]:
    """Return the format of each layer's keys and values.

    Raises what ``measured`` does of half precision; other formats that cannot store such caches
    are passed over.
    """
    stored = {"half": measured(separate, decoding, every, _both("half"))}
    for name, bits in STEPS.items():
        if name not in stored and bits >= asked.bits and _storable(stored["half"], name):
            stored[name] = measured(separate, decoding, every, _both(name))
    trial = _Trial(separate, stored, every)
    now = dict.fromkeys(range(len(stored["half"].layers)), "half")
    for name in list(stored)[1:]:
        saves = [n for n in now if trial.saves(n, now[n], name, asked.tokens)]
        gone = _gone(trial, now, name, saves)
        now |= dict.fromkeys(gone, name)
        if len(gone) < len(saves):
            break
    kept = [stored[name].layers[layer].kept for layer, name in now.items()]
    names = [(one["key"].format.text, one["value"].format.text) for one in kept]  # with outliers
    return tuple(Caching(layer, *pair) for layer, pair in enumerate(names))


def _gone(trial: _Trial, now: Mapping[int, str], name: str, layers: Collection[int]) -> list[int]:
    """Return those of some layers that may go on to a format."""
    alone = {layer: trial.lost({**now, layer: name}) for layer in layers}
    order = sorted(layers, key=lambda layer: (alone[layer], layer))
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        lost = trial.lost({**now, **dict.fromkeys(order[:middle], name)})
        low, high = (middle, high) if lost <= MOST else (low, middle - 1)
    return order[:low]


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
        self.records = {name: cache.records for name, cache in stored.items()}
        self.full = self.decode(self.given)[self.logits][:, -1]
        self.read = {
            (name, number, side): self._read(cache, number, side)
            for name, cache in stored.items()
            for number in range(len(cache.layers))
            for side in cache.layers[number].kept
        }

    def saves(self, layer: int, before: str, name: str, tokens: float) -> bool:
        """Return whether a format takes fewer bytes of the share of rows that is left."""
        rows = self.given[self.first.layers[layer].caches.key.input].shape[2]
        left = max(int(rows * tokens), 1)
        now, then = (self.records[one][layer].share(left) for one in (before, name))
        return then < now

    def _read(self, cache: StoredCache, number: int, side: Side) -> Tensor:
        layer = cache.layers[number]
        kept, rows = layer.kept[side], self.given[layer.caches.side(side).input]
        return kept.format.dequantize(side, kept.stored(rows), kept.constants).to(rows.dtype)

    def lost(self, formats: Mapping[int, str]) -> float:
        """Return the mean divergence of the next token with each layer in a format."""
        given = dict(self.given)
        for number, name in formats.items():
            for side in ("key", "value"):
                cache = self.first.layers[number].caches.side(side)
                given[cache.input] = self.read[name, number, side]
        return float(divergence(self.full, self.decode(given)[self.logits][:, -1]).mean())
