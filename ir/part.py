"""Part: a joined program that was rewritten as the programs it was joined of.

A program gives what it gave before, and what later ones read of it (``crossing.py``).  Sound
because every call is in exactly one program, each program runs after those it reads from, and
sizes are read off the program's own inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx
from torch.export import ExportedProgram

from tokopt.ir.crossing import find_crossing
from tokopt.ir.growing import Growing, Named
from tokopt.ir.join import chain, joined_outputs
from tokopt.ir.links import Link, outputs_by_name
from tokopt.ir.owners import find_owners
from tokopt.ir.tensors import tensor_inputs


@dataclass(frozen=True)
class Part:
    """One of the programs; ``outputs`` names its tensor outputs in order."""

    exported: ExportedProgram
    outputs: tuple[str, ...]


def part(
    rewritten: ExportedProgram,
    graphs: Mapping[str, ExportedProgram],
    links: Sequence[Link],
    main: str,
    traced: Sequence[str] = (),
) -> tuple[dict[str, Part], tuple[Link, ...]]:
    """Return the programs of ``join(graphs, links, main)`` after its rewrite, and their links.

    ``traced`` names the outputs that came behind the joined program's own; each belongs to the
    program that computes it.  Raises ``UnsupportedError`` where a program needs a size that none
    of its inputs has, or a call depends on what only a later program is given.
    """
    names = chain(links, main)
    inner = [link for link in links if link.target in names]
    owners = find_owners(rewritten, names)
    places = [*joined_outputs(graphs, links, main), *(("", name) for name in traced)]
    given = [node for node in rewritten.graph.output_node().args[0] if isinstance(node, fx.Node)]
    results: dict[str, list[Named]] = {name: [] for name in names}
    for (program, output), node in zip(places, given, strict=True):
        results[program or names[owners[node]]].append((output, node))
    taken = {t.name for graph in graphs.values() for t in tensor_inputs(graph)}
    taken |= {output for graph in graphs.values() for output in outputs_by_name(graph)}
    crossing = find_crossing(owners, names, inner, taken)
    made = {}
    for number, name in enumerate(names):
        growing = Growing(rewritten, {n for n, owner in owners.items() if owner == number})
        order = [tensor.name for tensor in tensor_inputs(graphs[name])]
        arriving = [*growing.own_inputs(graphs[name], inner, name), *crossing.arriving[number]]
        arriving.sort(key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))
        leaving = [pair for pair in crossing.leaving[number] if pair not in results[name]]
        made[name] = Part(
            *growing.finished(arriving, _in_order(graphs[name], results[name] + leaving))
        )
    renamed = [
        replace(x, output=own_name(x.output, made[x.source].exported)) for x in crossing.links
    ]
    return made, tuple(renamed)


def own_name(output: str, exported: ExportedProgram) -> str:
    """Return the name of a program's output: another one than its inputs have."""
    taken = {tensor.name for tensor in tensor_inputs(exported)}
    return f"output_{output}" if output in taken else output


def _in_order(graph: ExportedProgram, outputs: list[Named]) -> list[Named]:
    """Return outputs in the order of the original program's, new ones behind them."""
    order = list(outputs_by_name(graph))
    return sorted(
        outputs, key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order)
    )
