"""Pays: from how many rows of a cache on a sparse step moves fewer bytes than a full one.

Attention of one token is bound by the rows it reads on every device (one multiplication a value),
so bytes decide and the device's numbers cancel.  A full layer reads its keys and values once; a
choosing layer its keys once more; a sparse one reads, writes and reads again the rows it keeps,
however few the cache has.  What grows a cache is the same in both.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.sparse_decode.groups import Groups
from tokopt.passes.sparse_decode.pages import Pages

COPIES = 3


def paying_rows(groups: Groups, pages: Pages, widths: Sequence[tuple[int, int]]) -> int:
    """Return the least number of rows at which sparse steps move no more than full ones.

    ``widths``: the values of one row of each layer's keys and of its values.  Never less than what
    is kept.  Raises ``UnsupportedError`` where no length pays.
    """
    sparse = sum(sum(widths[depth]) for depth in groups.sparse)
    scored = sum(widths[depth][0] for depth in groups.select)
    if sparse <= scored:
        raise UnsupportedError(
            f"choosing in {len(groups.select)} layers costs more than {len(groups.sparse)} sparse "
            "layers save, at any length",
            expected="fewer layers that select",
        )
    least = -(-COPIES * pages.rows * sparse // (sparse - scored))
    return max(least, pages.rows + 1)
