"""Separate: a model that came as several programs: joined for the rewrite, parted behind it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import networkx
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.inputs import example_inputs, fitting_inputs
from tokopt.cli.several import describe_links, link_lines
from tokopt.ir.decoding import Decoding, find_decoding
from tokopt.ir.errors import TokoptError, UnsupportedError
from tokopt.ir.facts import Facts
from tokopt.ir.join import chain, join, joined_outputs, running_order
from tokopt.ir.links import Link, find_links, outputs_by_name
from tokopt.ir.masks import find_masks
from tokopt.ir.part import Part, own_name, part
from tokopt.ir.program import Program
from tokopt.ir.tensors import tensor_inputs
from tokopt.passes.apply_plan import Applied
from tokopt.passes.decompose import decompose
from tokopt.passes.followers import Followers, refuse_lengths
from tokopt.passes.normalize import normalize_all
from tokopt.targets.chained import Chain
from tokopt.targets.parts import FIRST, part_named
from tokopt.targets.programs import ProgramEntry
from tokopt.targets.runtime import TRACE
from tokopt.targets.signature import signature_of


@dataclass(frozen=True)
class Separate:
    """Programs in normal form, how they are linked, and all that feeds the main one as one.

    ``archived`` are the same programs as they came.
    """

    archived: Mapping[str, ExportedProgram]
    program: Program
    links: tuple[Link, ...]
    joined: ExportedProgram

    @staticmethod
    def of(program: Program) -> Separate:
        """Link and join an archive's programs.

        Raises ``InputError`` where the links leave a choice, and ``UnsupportedError`` where a
        program has none or the programs cannot be one graph.
        """
        try:
            main = program.main_name
            normal = replace(program, graphs=normalize_all(program.graphs))
            links = find_links(normal.graphs)
            _refuse_buffers(program, normal, links)
        except TokoptError as error:
            error.where = error.where or program.source
            raise
        _refuse_unlinked(normal, links)
        _refuse_names(normal)
        return Separate(program.graphs, normal, links, join(normal.graphs, links, main))

    @property
    def order(self) -> list[str]:
        """All programs in the order they run."""
        return running_order(self.program.graphs, self.links, self.program.main_name)

    @property
    def following(self) -> list[str]:
        """The programs behind the main one."""
        return self.order[len(chain(self.links, self.program.main_name)) :]

    @property
    def original(self) -> Chain:
        """The programs as they came."""
        return self._chain(self._untouched(self.program.graphs), self.links)

    def inputs(self, given: str | Path | Mapping[str, object] | None) -> dict[str, Tensor]:
        """Return the inputs of a file or a mapping by outer name, else the archive's own."""
        chain = self.original
        if given is None:
            examples = {name: example_inputs(graph) for name, graph in self.program.graphs.items()}
            given = {outer: examples[p][name] for (p, name), outer in chain.inputs.items()}
        return fitting_inputs(given, chain.signature)

    def of_joined(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those of the outer inputs that the joined program takes."""
        return {tensor.name: inputs[tensor.name] for tensor in tensor_inputs(self.joined)}

    def of_followers(self, inputs: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return what each program behind the main one is given that no link gives."""
        outer = self.original.inputs
        return {
            one: {name: inputs[o] for (p, name), o in outer.items() if p == one}
            for one in self.following
        }

    def followers(self) -> Followers:
        """Return the programs behind the main one, to be judged."""
        places = joined_outputs(self.program.graphs, self.links, self.program.main_name)
        return Followers(self.program, self.following, self.links, places)

    def decoding(self, facts: Facts) -> Decoding | None:
        """Return how what follows makes tokens; ``facts`` are those of the joined program."""
        main, masks = self.program.main_name, find_masks(facts, facts.consumer)
        own = [
            name
            for (p, name), outer in self.original.inputs.items()
            if p == main and outer in masks
        ]
        return find_decoding(self.program.graphs, self.links, main, own)

    def outer_outputs(self, chain: Chain) -> list[str]:
        """Return the outer names of the joined program's outputs, in its order."""
        outer = chain.outputs
        exported = {name: self.program.graphs[name] for name in self.order}
        return [outer[p, own_name(o, exported[p])] for p, o in self.followers().places]

    def parted(
        self, applied: Applied, native: Collection[str] = (), budget: str = FIRST
    ) -> tuple[dict[str, Part], Chain]:
        """Return the rewritten programs and how they run; ``budget`` is the part of theirs.

        Programs behind the main one are the first budget's for all.  The dialect is in plain aten,
        but for operators that are ``native`` to the target.  Raises ``UnsupportedError`` where a
        program behind the main one takes a constant length that is no longer there.
        """
        graphs, main = self.program.graphs, self.program.main_name
        traced = [f"{TRACE}{i}.{w}" for i in range(len(applied.trace)) for w in ("kept", "scores")]
        rewritten = decompose(applied.exported, keep=native)
        parts, inner = part(rewritten, graphs, self.links, main, traced)
        values = {
            name: dict(zip(p.outputs, _values(p.exported), strict=True))
            for name, p in parts.items()
        }
        handed = {
            (x.source, x.output): values[x.source][own_name(x.output, parts[x.source].exported)]
            for x in self.links
            if x.source in parts and x.target in self.following
        }
        refuse_lengths(self.program, self.links, handed, self.following)
        outer = [link for link in self.links if link.target in self.following]
        every = {**parts, **self._untouched(self.following)}
        return every, self._chain(every, [*inner, *outer], budget)

    def chained(self, parts: Mapping[str, Part], links: Sequence[Link], budget: str) -> Chain:
        """Return how programs of other forms but the same names and ``links`` run."""
        return replace(self._chain(parts, (), budget), links=tuple(links))

    def _untouched(self, names: Iterable[str]) -> dict[str, Part]:
        found = {name: self.program.graphs[name] for name in names}
        return {
            name: Part(graph, tuple(own_name(output, graph) for output in outputs_by_name(graph)))
            for name, graph in found.items()
        }

    def _chain(
        self, parts: Mapping[str, Part], links: Sequence[Link], budget: str = FIRST
    ) -> Chain:
        entries = [
            ProgramEntry(
                name,
                part_named(name) + (FIRST if name in self.following else budget),
                signature_of(parts[name].exported, parts[name].outputs),
                name in self.following,
            )
            for name in self.order
        ]
        named = [replace(x, output=own_name(x.output, parts[x.source].exported)) for x in links]
        return Chain(tuple(entries), tuple(named))


def _values(exported: ExportedProgram) -> list[Tensor]:
    return [node.meta["val"] for node in exported.graph.output_node().args[0]]


def _refuse_buffers(archived: Program, normal: Program, links: Sequence[Link]) -> None:
    """Refuse a buffer of fixed length that decode goes on with, and of which more is not known."""
    for link in links:
        before = {t.name: t.value for t in tensor_inputs(archived.graphs[link.target])}
        after = {t.name: t.value for t in tensor_inputs(normal.graphs[link.target])}
        given = outputs_by_name(normal.graphs[link.source])[link.output].meta["val"]
        if link.input not in before or before[link.input].ndim != given.ndim:
            continue
        sizes = zip(before[link.input].shape, after[link.input].shape, given.shape, strict=True)
        if any(isinstance(a, int) and not isinstance(b, int) and c == a for a, b, c in sizes):
            raise UnsupportedError(
                f"{link.target} writes its cache row by row, and which rows of {link.output!r} "
                f"{link.source} has written is not known",
                expected="a buffer of zeros, or an input, into which the prompt's rows are written "
                "from the first place on (index_copy, index_put, a slice)",
                hint="return the prompt's rows alone, as `tokopt export --decode` does",
            )


def _refuse_unlinked(program: Program, links: Sequence[Link]) -> None:
    graph = networkx.Graph((link.source, link.target) for link in links)
    graph.add_nodes_from(program.graphs)
    linked = networkx.node_connected_component(graph, program.main_name)
    alone = [name for name in program.graphs if name not in linked]
    if alone:
        lines = "; ".join(link_lines(describe_links(program.graphs)["links"])) or "none found"
        raise UnsupportedError(
            f"program {alone[0]!r} is not linked to {program.main_name!r} (links: {lines})",
            where=program.source,
            expected="programs of which each gives or takes a tensor of another",
            hint="save unrelated programs into archives of their own",
        )


def _refuse_names(program: Program) -> None:
    for name in program.graphs:
        if re.fullmatch(r"\w[\w-]*", name, re.ASCII) is None:
            raise UnsupportedError(
                f"program {name!r} would give its name to files",
                where=program.source,
                expected="a name of letters, digits, _ and -",
                hint="save the programs under other names",
            )
