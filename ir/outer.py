"""Outer names: what several programs take and give as a whole, each tensor under one name.

Two programs may call different tensors alike (``input_ids`` of prefill and of decode).  The first
in the order in which they run keeps the plain name, each later one gets its program's in front.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Place = tuple[str, str]
"""A program and the name of one of its inputs or outputs."""


def outer_names(places: Iterable[Place], taken: Iterable[str] = ()) -> dict[Place, str]:
    """Return the outer name of each place, given in the order of the programs.

    Names in ``taken`` are used already.  The result has the order of ``places``.
    """
    used, found = set(taken), dict[Place, str]()
    for program, name in places:
        outer = name
        while outer in used:
            outer = re.sub(r"\W", "_", f"{program}_{outer}")
        used.add(outer)
        found[program, name] = outer
    return found
