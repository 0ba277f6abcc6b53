"""Images: how many images the visual rows of a sequence are of, one behind the other.

Visual rows are counted in the order in which they are written into the text.  Where the graph tells
which picture of the tower's batch each row comes from (``places.py``, or as items of the tower),
and every picture brings equally many rows in a row, the number of pictures is known.  Pictures are
what the tower sees: an image, but also a crop or a frame, where the model takes an image apart
before its tower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.plan import Quota

_STATE = "where the images of a prompt have equally many rows, state their number: quota = 2"


def image_count(facts: Facts, stack: TokenStack, quota: Quota) -> int:
    """Return the number of images in a sequence: as stated, or as the graph tells (``image``).

    Their rows follow one another, equally many of each.  Raises ``UnsupportedError`` where the
    graph does not tell, or where pictures bring different numbers of rows, and ``InputError`` for
    a stated number that does not divide the rows.
    """
    if not isinstance(stack.count, int):
        raise UnsupportedError(f"the number of visual tokens in {stack.role} is symbolic")
    if isinstance(quota, int):
        if stack.count % quota:
            raise InputError(
                f"quota = {quota}: {stack.count} visual rows are not of {quota} images",
                expected=f"a divisor of {stack.count}",
            )
        return quota
    tiles = _pictures(facts, stack)
    if bool((tiles < 0).any()):
        raise UnsupportedError(
            f"quota = image: {int((tiles < 0).sum())} of {len(tiles)} visual rows of {stack.role} "
            "are of no patch (line ends): the tower's pictures are tiles of an image",
            hint=_STATE,
        )
    number = int(tiles.max()) + 1
    each, left = divmod(len(tiles), number)
    if left or not torch.equal(tiles, torch.arange(len(tiles)) // each):
        rows = ", ".join(map(str, torch.bincount(tiles).tolist()))
        raise UnsupportedError(
            f"quota = image: the {number} pictures the tower sees do not bring equally many rows, "
            f"one behind the other ({rows}): they are tiles of an image",
            hint=_STATE,
        )
    return number


def _pictures(facts: Facts, stack: TokenStack) -> Tensor:
    """Return the picture that each visual row is of, int64 ``[N]``, -1 for rows of none.

    As the rows' places tell, else as items of the tower: packed patches have no place.
    """
    try:
        return facts.places(stack).tile
    except UnsupportedError as error:
        fed = facts.feeder(stack)
        if fed is None:
            raise UnsupportedError(
                f"quota = image: the graph does not tell which image the rows of {stack.role} are "
                "of",
                hint=_STATE,
            ) from error
    arrival = fed[2]
    return torch.where(arrival.units < 0, -1, arrival.units // arrival.reach.shape[1])
