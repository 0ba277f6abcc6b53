"""Archives of several programs: how they are linked, in words, and that none is compiled alone.

Compiling only the main one would leave the others with tensors that no longer fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from torch.export import ExportedProgram

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.links import Link, find_links
from tokopt.ir.program import Program

SHOWN = 2
"""Links of one pair of programs that are shown: caches have one for every layer and half."""


def refuse_several(program: Program) -> None:
    """Raise ``UnsupportedError`` for an archive of more than one program, saying what is in it."""
    if len(program.graphs) == 1:
        return
    described = describe_links(program.graphs)
    lines = described["unclear"] or "; ".join(link_lines(described["links"])) or "none found"
    raise UnsupportedError(
        f"the archive holds {len(program.graphs)} programs ({', '.join(program.graphs)}; "
        f"links: {lines}), and compiling several programs together is not built yet",
        where=program.source,
        expected="an archive of one program",
        hint="export the whole model as one program; `tokopt inspect` shows what these are",
    )


def describe_links(graphs: Mapping[str, ExportedProgram]) -> dict[str, Any]:
    """Return ``links`` as data, and ``unclear``: why there are none, where a choice is left."""
    try:
        return {"links": [vars(link) for link in find_links(graphs)], "unclear": None}
    except InputError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return {"links": [], "unclear": f"{error.what}{hint}"}


def link_lines(links: Sequence[Mapping[str, str]]) -> list[str]:
    """Return one line for each pair of programs: ``prefill.k → decode.cache_0, … 6 in all``."""
    lines = []
    for _, group in groupby(links, key=lambda link: (link["source"], link["target"])):
        members = [str(Link(**link)) for link in group]
        more = f", … {len(members)} in all" if len(members) > SHOWN else ""
        lines.append(", ".join(members[:SHOWN]) + more)
    return lines
