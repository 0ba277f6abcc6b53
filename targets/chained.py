"""Chained: the several programs of a model run one after the other, each given what links say.

As a whole they take the inputs that no link gives and give what no program in front of the main
one takes from another; every tensor has an outer name (``ir/outer.py``).  Free sizes are those of
one program each, and named so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokopt.ir.links import Link
from tokopt.ir.outer import Place, outer_names
from tokopt.ir.placeholders import Placeholders
from tokopt.targets.base import Runner
from tokopt.targets.coding import coded
from tokopt.targets.input_check import checked_inputs
from tokopt.targets.manifest import Manifest
from tokopt.targets.programs import ProgramEntry
from tokopt.targets.short_mask import short_mask
from tokopt.targets.signature import Signature, TensorSpec
from tokopt.targets.symbols import size_of


@dataclass(frozen=True)
class Chain:
    """Programs in the order they run, and the links between them."""

    programs: Sequence[ProgramEntry]
    links: Sequence[Link]

    @property
    def inputs(self) -> dict[Place, str]:
        """The outer name of every input that no link gives."""
        linked = {(link.target, link.input) for link in self.links}
        linked |= {(p.name, name) for p in self.programs for name in _coded_inputs(p)}
        places = [(p.name, spec.name) for p in self.programs for spec in p.signature.inputs]
        return outer_names(place for place in places if place not in linked)

    @property
    def outputs(self) -> dict[Place, str]:
        """The outer name of every output but those that only a program in front takes."""
        following = {p.name for p in self.programs if p.follows}
        inner = {(x.source, x.output) for x in self.links if x.target not in following}
        places = [(p.name, spec.name) for p in self.programs for spec in p.signature.outputs]
        return outer_names((p for p in places if p not in inner), self.inputs.values())

    def asked(self, given: Collection[str]) -> Chain:
        """Return the chain without the programs behind the main one that are given nothing."""
        left = list(self.programs)
        for program in reversed(self.programs):
            own = {outer for (name, _), outer in self.inputs.items() if name == program.name}
            if program.follows and own and not own & set(given):
                left.remove(program)
        names = {program.name for program in left}
        return replace(
            self, programs=left, links=[x for x in self.links if {x.source, x.target} <= names]
        )

    @property
    def signature(self) -> Signature:
        """What the whole takes and gives."""
        inputs, outputs, ranges = self.inputs, self.outputs, {}
        takes, gives = list[TensorSpec](), list[TensorSpec]()
        for program in self.programs:
            own, name = program.signature, program.name
            ranges.update({f"{name}.{symbol}": span for symbol, span in own.ranges.items()})
            for specs, names, made in ((own.inputs, inputs, takes), (own.outputs, outputs, gives)):
                made += [
                    TensorSpec(names[name, s.name], s.dtype, _of_program(name, s))
                    for s in specs
                    if (name, s.name) in names
                ]
        return Signature(tuple(takes), tuple(gives), ranges)

    def run(
        self, runner: Callable[[ProgramEntry], Runner], given: Mapping[str, Tensor]
    ) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Run every program; return its inputs and outputs under its own names.

        Raises ``InputError`` where a program is given what does not fit it.
        """
        known = {place: given[outer] for place, outer in self.inputs.items()}
        ran = {}
        for program in self.programs:
            name = program.name
            names = [s.name for s in program.signature.inputs if (name, s.name) in known]
            own = coded(program.coders, {n: known[name, n] for n in names}, runner)
            own = self._cut(program, own)
            outputs = runner(program)(checked_inputs(own, program.signature))
            ran[name] = (own, outputs)
            for link in self.links:
                if link.source == name:
                    known[link.target, link.input] = outputs[link.output]
        return ran

    def _cut(self, program: ProgramEntry, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return inputs of which masks of a handed cache and one token are as short as the cache.

        Such a mask is given for the whole prompt, as to the original.
        """
        linked = {link.input for link in self.links if link.target == program.name}
        linked |= set(_coded_inputs(program))
        sizes = {
            size: own[spec.name].shape[dim]
            for spec in program.signature.inputs
            if spec.name in linked
            for dim, size in enumerate(spec.shape)
            if isinstance(size, str)
        }
        found = dict(own)
        for spec in program.signature.inputs:
            value = own[spec.name]
            if spec.name in linked or len(spec.shape) != 2 or value.is_floating_point():
                continue
            longer = isinstance(spec.shape[1], str) and spec.shape[1].endswith("+ 1")
            size = size_of(spec.shape[1], sizes) if longer else None
            if program.follows and size is not None and value.shape[1] > size:
                prompt = short_mask(value[:, :-1], size - 1, spec.name)
                found[spec.name] = torch.cat([prompt, value[:, -1:]], 1)
        return found

    def runner(self, runner: Callable[[ProgramEntry], Runner]) -> Runner:
        """Return all programs as one function from outer inputs to outer outputs."""

        def run(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
            chain = self.asked(given)
            ran = chain.run(runner, given)
            outputs = self.outputs.items()
            return {outer: ran[p][1][name] for (p, name), outer in outputs if p in ran}

        return run


def signature_for(manifest: Manifest, given: Collection[str]) -> Signature:
    """Return what an artifact takes where these inputs are given.

    Without what follows the main program, and without what the artifact remembers by itself.
    """
    if not manifest.programs:
        own = {memory.input for memory in manifest.memory} - set(given)
        asked = tuple(spec for spec in manifest.signature.inputs if spec.name not in own)
        return replace(manifest.signature, inputs=asked)
    return Chain(manifest.programs, manifest.links).asked(given).signature


def manifest_of(manifest: Manifest, program: ProgramEntry) -> Manifest:
    """Return the manifest as seen from one of its programs."""
    outer = Chain(manifest.programs, manifest.links).inputs
    own = {name: inner for (p, inner), name in outer.items() if p == program.name}
    wanted: list[Placeholders] = [
        replace(p, input=own[p.input], mask=own.get(p.mask) if p.mask is not None else None)
        for p in manifest.placeholders
        if p.input in own
    ]
    return replace(
        manifest,
        signature=program.signature,
        placeholders=tuple(wanted),
        programs=(),
        links=(),
        decoding=None,
    )


def _coded_inputs(program: ProgramEntry) -> list[str]:
    """Return the inputs of a program that its coders give."""
    parts = (cache.parts for coder in program.coders for cache in coder.caches)
    return [name for one in parts for name in one.values()]


def _of_program(program: str, spec: TensorSpec) -> tuple[int | str, ...]:
    """Return a shape with the names of its free sizes as those of one program."""
    return tuple(
        re.sub(r"[A-Za-z_]\w*", lambda word: f"{program}.{word[0]}", size)
        if isinstance(size, str)
        else size
        for size in spec.shape
    )
