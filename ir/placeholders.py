"""Placeholders: how many positions of an input every batch item must give to the visual rows.

A merge writes a constant number of visual rows per item where its mask is true.  Exports make the
mask of an input's values (``input_ids == image token``), so the mask can be told from the inputs
alone, before anything runs.  Sound: only the comparison itself and operators that leave every
value where it is, or repeat it along a new dim, are followed back to the input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from tokopt.ir.dims import operator_name
from tokopt.ir.facts import Facts
from tokopt.ir.masks import find_masks
from tokopt.ir.merge import Merge
from tokopt.ir.movement import SAME_VALUES


@dataclass(frozen=True)
class Placeholders:
    """Per batch item, ``count`` elements of the integer ``input`` must equal ``value``.

    ``mask``: the input of the same shape that is 0 at padding, where there is one.  The last row
    in front of padding must be no placeholder: it may not be dropped, and nothing else says so.
    """

    input: str
    value: int
    count: int
    mask: str | None = None


def find_placeholders(facts: Facts) -> tuple[Placeholders, ...]:
    """Return what the merges of a program ask of its inputs, each once.

    A merge whose mask is made in another way, or whose rows are not a constant number, asks
    nothing that could be checked.
    """
    found: dict[Placeholders, None] = {}
    for stack in facts.stacks:
        asked = None if stack.merge is None else _of_merge(stack.merge)
        if asked is not None:
            masks = find_masks(facts, stack)
            found[replace(asked, mask=masks[0] if len(masks) == 1 else None)] = None
    return tuple(found)


def _of_merge(merge: Merge) -> Placeholders | None:
    node = merge.mask
    while node.op == "call_function" and operator_name(node) in SAME_VALUES:
        node = node.all_input_nodes[0]
    if node.op != "call_function" or operator_name(node) != "aten::eq":
        return None
    source, value = node.args[0], node.args[1]
    if not isinstance(source, fx.Node) or source.op != "placeholder":
        return None
    given, spread = source.meta["val"], merge.mask.meta["val"]
    if [*map(str, spread.shape[: given.dim()])] != [*map(str, given.shape)]:
        return None  # spread over rows or items, not over features: it would count others
    if given.is_floating_point() or not isinstance(value, int) or not isinstance(merge.count, int):
        return None
    return Placeholders(source.name, value, merge.count)
