"""Cache sides: which attention of decode reads a cache, and whether as its keys or its values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import fx
from torch.export import ExportedProgram

from tokopt.ir.attention import find_attention
from tokopt.ir.cache import Cache, find_grown
from tokopt.ir.dims import infer_dims
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.turning import Turning, find_turning

Side = Literal["key", "value"]


@dataclass(frozen=True)
class LayerCache:
    """The two caches of one attention layer; ``turning`` of its keys, as far as it is ``known``."""

    key: Cache
    value: Cache
    turning: Turning | None
    known: bool = True

    def side(self, side: Side) -> Cache:
        """Return the cache of a side."""
        return self.key if side == "key" else self.value


def find_layer_caches(decode: ExportedProgram, caches: Sequence[Cache]) -> tuple[LayerCache, ...]:
    """Return decode's caches layer by layer, in the order in which the layers run.

    ``decode`` is in normal form.  Raises ``UnsupportedError`` for a cache that no attention reads,
    or that one reads as keys and another as values.
    """
    grown = {one.node: one for one in find_grown(decode)}
    by_input = {cache.input: cache for cache in caches}
    layers: dict[tuple[str, str], LayerCache] = {}
    for attention in find_attention(decode.graph, infer_dims(decode)):
        keys, values = (_grown_behind(n, set(grown)) for n in (attention.key, attention.value))
        if len(keys) != 1 or len(values) != 1:
            continue
        key, value = grown[keys.pop()], grown[values.pop()]
        names = (key.past.name, value.past.name)
        if not set(names) <= set(by_input):
            continue
        try:
            turning, known = find_turning(key.new), True
        except UnsupportedError:
            turning, known = None, False
        found = LayerCache(by_input[names[0]], by_input[names[1]], turning, known)
        layers.setdefault(names, found)
    read = [name for names in layers for name in names]
    for name in by_input:
        if read.count(name) != 1:
            raise UnsupportedError(
                f"the cache {name!r} is not one layer's keys or one layer's values",
                expected="a cache that is grown by cat and read by one attention",
            )
    return tuple(layers.values())


def _grown_behind(node: fx.Node, grown: set[fx.Node]) -> set[fx.Node]:
    """Return the grown caches that a value is made of, nearest ones alone."""
    found, seen, queue = set[fx.Node](), set[fx.Node](), [node]
    while queue:
        current = queue.pop()
        if current in grown:
            found.add(current)
        elif current not in seen and current.op == "call_function":
            seen.add(current)
            queue += current.all_input_nodes
    return found
