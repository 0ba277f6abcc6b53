"""Archives of several programs, shown: with their links, and as one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from tokopt.ir.errors import InputError
from tokopt.ir.join import chain, join
from tokopt.ir.links import Link, find_links
from tokopt.ir.program import Program
from tokopt.targets.manifest import MANIFEST, read_manifest
from tokopt.targets.program_file import PROGRAM

SHOWN = 2
"""Links of one pair of programs that are shown: caches have one for every layer and half."""


def located(path: str) -> tuple[Path, tuple[Link, ...] | None]:
    """Return the archive to look at, and its links where they are known: an artifact's are.

    An artifact of one program has none to be known.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        return folder, None
    return folder / PROGRAM, read_manifest(folder).links


def describe_links(
    graphs: Mapping[str, ExportedProgram], known: Sequence[Link] | None = None
) -> dict[str, Any]:
    """Return ``links`` as data, and ``unclear``: why there are none, where a choice is left."""
    try:
        links = find_links(graphs) if known is None else known
        return {"links": [vars(link) for link in links], "unclear": None}
    except InputError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return {"links": [], "unclear": f"{error.what}{hint}"}


def whole(program: Program, described: Mapping[str, Any]) -> tuple[ExportedProgram, list[str]]:
    """Return the main program joined with those that feed it, and their names as they run.

    Only the main one where it is not clear what feeds it (``describe_links``).  The graphs are in
    normal form.
    """
    main = program.main_name
    links = [Link(**link) for link in described["links"]]
    names = chain(links, main)
    return (program.main if names == [main] else join(program.graphs, links, main)), names


def link_lines(links: Sequence[Mapping[str, str]]) -> list[str]:
    """Return one line for each pair of programs: ``prefill.k → decode.cache_0, … 6 in all``."""
    lines = []
    for _, group in groupby(links, key=lambda link: (link["source"], link["target"])):
        members = [str(Link(**link)) for link in group]
        more = f", … {len(members)} in all" if len(members) > SHOWN else ""
        lines.append(", ".join(members[:SHOWN]) + more)
    return lines
