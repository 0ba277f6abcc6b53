"""``program.pt2``: the rewritten program as a file, the same bytes every time.

What differs between processes or tells about the machine is left out: stack traces, node
histories (they hold memory addresses) and the example inputs, which are the user's data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import ExportedProgram

from tokopt.ir.errors import InputError
from tokopt.ir.program import MAIN_NAMES, Program
from tokopt.ir.save import save
from tokopt.targets.parts import FIRST, named_by
from tokopt.targets.quiet import quiet
from tokopt.targets.stored_weights import StoredWeights

PROGRAM = "program.pt2"
PRIVATE = ("stack_trace", "from_node", "torch_fn", "source_fn_stack")


def save_program(program: Program, folder: Path) -> StoredWeights:
    """Write ``program.pt2`` into ``folder``; return where in it the weights are.

    ``OSError`` for a full disk.
    """
    with quiet(), _bare(list(program.graphs.values())):
        places = save(program, folder / PROGRAM)
    return StoredWeights(PROGRAM, places, shared=len(program.graphs) > 1)


def program_name(main: str, part: str) -> str:
    """Return the name of a part's program in ``program.pt2``."""
    return main if part == FIRST else f"{MAIN_NAMES[0]}{part}"


def program_of(program: Program, part: str) -> ExportedProgram:
    """Return the program of a part.  ``InputError`` where the file has none."""
    if part == FIRST:
        return program.main
    names = [program_name("", part), named_by(part)]
    found = next((name for name in names if name in program.graphs), None)
    if found is None:
        raise InputError(f"the program {names[0]!r} is missing", where=program.source)
    return program.graphs[found]


@contextmanager
def _bare(graphs: list[ExportedProgram]) -> Iterator[None]:
    """Take private metadata and example inputs off ``graphs``, and put them back afterwards."""
    metas = [
        node.meta
        for exported in graphs
        for module in exported.graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
    ]
    kept = [{key: meta.pop(key) for key in PRIVATE if key in meta} for meta in metas]
    examples = [exported._example_inputs for exported in graphs]
    try:
        for exported in graphs:
            exported._example_inputs = None
        yield
    finally:
        for meta, private in zip(metas, kept, strict=True):
            meta.update(private)
        for exported, example in zip(graphs, examples, strict=True):
            exported._example_inputs = example
