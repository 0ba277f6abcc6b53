"""Cache reads: the attention of each layer of decode with the two caches that it reads.

Recognised: fused attention of one query row over caches ``[B, H, T, D]`` that are grown by cat,
read as they are or with each head repeated for a group of the query's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import statically_known_true as known

from tokopt.ir.attention import FUSED, SOFTMAX
from tokopt.ir.cache import Grown, find_grown
from tokopt.ir.dims import arguments_of, operator_name
from tokopt.ir.errors import UnsupportedError

aten = torch.ops.aten
SAME = frozenset({aten.alias.default, aten.clone.default, aten.contiguous.default})
WHOLE = aten.slice.Tensor
SHAPED = frozenset(
    {aten.unsqueeze.default, aten.expand.default, aten.view.default, aten.reshape.default}
    | {aten._unsafe_view.default, aten.flatten.using_ints}
)


@dataclass(frozen=True)
class CacheRead:
    """One layer: ``node`` attends with ``query`` ``[B, H, 1, D]`` over the two grown caches."""

    node: fx.Node
    query: fx.Node
    key: Grown
    value: Grown
    mask: fx.Node | None
    scale: float


def find_cache_reads(decode: ExportedProgram, caches: Collection[str]) -> tuple[CacheRead, ...]:
    """Return decode's layers in the order they run; ``caches`` names the inputs that grow.

    ``decode`` is in normal form.  Raises ``UnsupportedError`` naming a call that reads a cache in
    another way.
    """
    grown = {g.node: g for g in find_grown(decode) if g.past.name in caches}
    found, read = [], set[fx.Node]()
    for node in decode.graph.nodes:
        name = operator_name(node) if node.op == "call_function" else ""
        if name in SOFTMAX:
            behind = [g for g in grown if _reaches(g, node)]
            if behind and not read & set(behind):
                raise _other(node, "attention that is written out")
        if name != FUSED:
            continue
        given = arguments_of(node)
        sides = [cache_behind(given[side], grown) for side in ("key", "value")]
        if sides[0] is None and sides[1] is None and not _behind(node, grown):
            continue
        if sides[0] is None or sides[1] is None:
            raise _other(node, "a cache whose rows are changed between cat and attention")
        found.append(_read(node, grown[sides[0]], grown[sides[1]]))
        read |= {sides[0], sides[1]}
    if {g.past.name for n, g in grown.items() if n in read} != set(caches):
        left = sorted(set(caches) - {g.past.name for n, g in grown.items() if n in read})
        raise UnsupportedError(
            f"no attention reads the cache {left[0]!r} as its keys or values",
            expected="every cache grown by cat and read by one attention",
        )
    return tuple(found)


def _read(node: fx.Node, key: Grown, value: Grown) -> CacheRead:
    given = arguments_of(node)
    query, mask, scale = given["query"], given.get("attn_mask"), given.get("scale")
    shape = query.meta["val"].shape
    if given.get("is_causal") or len(shape) != 4 or not known(shape[2] == 1):
        raise _other(node, "attention of other than one new row")
    if key.dim != 2 or value.dim != 2 or key.node.meta["val"].ndim != 4:
        raise _other(node, "a cache of other dims than [B, H, rows, D]")
    if mask is not None and mask.meta["val"].ndim != 4:
        raise _other(node, "a mask of other dims than [B, H, 1, rows]")
    factor = float(int(shape[3]) ** -0.5) if scale is None else float(scale)
    return CacheRead(node, query, key, value, mask, factor)


def _other(node: fx.Node, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"decode reads a cache by {what}",
        where=f"%{node.name}",
        expected="scaled_dot_product_attention of one row over caches grown by cat",
        hint="export with `tokopt export --decode` and attention=sdpa",
    )


def cache_behind(rows: fx.Node, grown: Collection[fx.Node]) -> fx.Node | None:
    """Return the grown cache that a value is, as it is or with its heads repeated."""
    chain, node = list[fx.Node](), rows
    while node not in grown:
        if node.op != "call_function" or node.target not in SAME | SHAPED | {WHOLE}:
            return None
        chain.append(node)
        node = node.all_input_nodes[0]
    same = [n for n in chain if n.target in SAME | {WHOLE}]
    if any(not _equal(n, n.all_input_nodes[0]) for n in same):
        return None
    shaped = [n for n in reversed(chain) if n.target in SHAPED]
    return node if not shaped or _repeats(shaped, node) else None


def _repeats(chain: Sequence[fx.Node], cache: fx.Node) -> bool:
    """Whether ``[B, G, T, D]`` is unsqueezed and expanded to n heads each, then folded to G·n."""
    if [n.target for n in chain[:2]] != [aten.unsqueeze.default, aten.expand.default]:
        return False
    if len(chain) != 3 or chain[0].args[1] not in (2, -3):
        return False
    own, each, all_heads = (n.meta["val"].shape for n in (cache, chain[1], chain[2]))
    return len(all_heads) == 4 and all(
        known(a == b)
        for a, b in (
            (each[1], own[1]),
            (all_heads[1], each[1] * each[2]),
            (all_heads[2], own[2]),
            (all_heads[3], own[3]),
        )
    )


def _equal(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta["val"].shape, other.meta["val"].shape
    return len(a) == len(b) and all(known(x == y) for x, y in zip(a, b, strict=True))


def _behind(node: fx.Node, grown: Collection[fx.Node]) -> bool:
    """Whether keys or values of a fused attention are computed from a grown cache."""
    given = arguments_of(node)
    return any(_reaches(g, given[side]) for g in grown for side in ("key", "value"))


def _reaches(source: fx.Node, node: fx.Node, steps: int = 12) -> bool:
    """Whether a value is a few calls behind another."""
    near = {node}
    for _ in range(steps):
        if source in near:
            return True
        near = {n for one in near for n in one.all_input_nodes}
    return False
