"""Check that every batch item has as many placeholders as a program writes visual rows.

A program takes a constant number of visual rows per item.  Given another number of placeholders
it would not fail: it would write rows of one image into another item's prompt, and answer garbage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.ir.placeholders import Placeholders


def check_placeholders(inputs: Mapping[str, Tensor], wanted: Sequence[Placeholders]) -> None:
    """Raise ``InputError`` naming the first item with too few or too many placeholders.

    Items are the rows of an input's first dim; an input of one dim is one item.
    """
    for placeholders in wanted:
        given = inputs[placeholders.input] == placeholders.value
        items = given.flatten(1) if given.dim() > 1 else given.reshape(1, -1)
        for item, count in enumerate(items.sum(1).tolist()):
            if count != placeholders.count:
                raise InputError(
                    f"item {item} has {count} image placeholders, the program expects "
                    f"{placeholders.count}",
                    where=f"input {placeholders.input!r}",
                    expected=f"{placeholders.count} elements equal to {placeholders.value} in "
                    "every item",
                    hint="the processor's image size and number of images must be those of export",
                )
        if placeholders.mask is not None:
            _check_last(placeholders, items, inputs[placeholders.mask])


def _check_last(placeholders: Placeholders, given: Tensor, mask: Tensor) -> None:
    """Refuse an item whose last row in front of padding is a visual row: it could be dropped."""
    for item, (visual, real) in enumerate(zip(given, mask != 0, strict=False)):
        rows = real.nonzero().flatten()
        if len(rows) and rows[-1] < len(real) - 1 and bool(visual[rows[-1]]):
            raise InputError(
                f"the prompt of item {item} ends with an image placeholder and is padded behind it",
                where=f"inputs {placeholders.input!r} and {placeholders.mask!r}",
                expected="a last token of text in front of padding: the answer follows from it",
                hint="end the prompt with text (a line break will do), or pad it on the left",
            )
