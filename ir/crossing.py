"""Crossing: what one program of a parted graph hands to the next, and under which names.

Where a stage shortened the value of a link, the short one goes under the link's names; whatever
else must cross (rows that stayed, flags) is a further output and input ``handed_0``, …
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from tokopt.ir.join import HANDED
from tokopt.ir.links import Link

EXTRA = "handed_"
"""How names begin that a program only has for the next one."""


@dataclass(frozen=True)
class Crossing:
    """``leaving`` and ``arriving``: per program, names and values; ``links`` has both ends."""

    leaving: tuple[list[tuple[str, fx.Node]], ...]
    arriving: tuple[list[tuple[str, fx.Node]], ...]
    links: tuple[Link, ...]


def find_crossing(
    owners: Mapping[fx.Node, int],
    names: Sequence[str],
    links: Sequence[Link],
    taken: Iterable[str],
) -> Crossing:
    """Return what crosses between the programs ``names``, given the owner of every call.

    ``links`` are those between these programs before the rewrite; names in ``taken`` are not used
    for anything new.
    """
    readers = {node: sorted({owners[u] for u in node.users if u in owners}) for node in owners}
    crossing = {n: [r for r in found if r != owners[n]] for n, found in readers.items()}
    crossing = {node: found for node, found in crossing.items() if found}
    known = _known(owners, crossing, names, links)
    leaving: tuple[list[tuple[str, fx.Node]], ...] = tuple([] for _ in names)
    arriving: tuple[list[tuple[str, fx.Node]], ...] = tuple([] for _ in names)
    made, number, used = [], 0, set(taken)
    for node, found in crossing.items():
        while f"{EXTRA}{number}" in used:
            number += 1
        output = known[node][0].output if node in known else f"{EXTRA}{number}"
        used.add(output)
        leaving[owners[node]].append((output, node))
        for reader in found:
            own = [link.input for link in known.get(node, ()) if link.target == names[reader]]
            arriving[reader].append((own[0] if own else output, node))
            made.append(Link(names[owners[node]], output, names[reader], arriving[reader][-1][0]))
    return Crossing(leaving, arriving, tuple(made))


def _known(
    owners: Mapping[fx.Node, int],
    crossing: Mapping[fx.Node, list[int]],
    names: Sequence[str],
    links: Sequence[Link],
) -> dict[fx.Node, list[Link]]:
    """Return the links whose value each crossing value is, or is the rest of."""
    before: dict[tuple[str, str], list[Link]] = {}
    for link in links:
        before.setdefault((link.source, link.output), []).append(link)
    origin = {node.meta[HANDED]: node for node in owners if HANDED in node.meta}
    found = {node: before[place] for place, node in origin.items() if place in before}
    known = {node: links for node, links in found.items() if node in crossing}
    for node, links_of in found.items():
        if node not in crossing:
            alike = [n for n in crossing if n not in known and owners[n] == owners[node]]
            alike = [n for n in alike if _is_rest(n, node)]
            if len(alike) == 1:
                known[alike[0]] = links_of
    return known


def _is_rest(node: fx.Node, whole: fx.Node) -> bool:
    """Return whether a value has the form of another one with fewer rows."""
    now, was = node.meta["val"], whole.meta["val"]
    other = [str(a) != str(b) for a, b in zip(was.shape, now.shape, strict=False)]
    return bool(was.dtype == now.dtype and was.dim() == now.dim() and sum(other) <= 1)
