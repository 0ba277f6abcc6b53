"""Links: which output of one program of an archive is which input of another.

Serving stacks split a model into vision, prefill and decode; the archive does not say how they
belong together.  Found by names, else by dtype and shape; where that leaves a choice, it is the
user's: two features of one shape must not be exchanged silently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import networkx
import torch
from torch.export import ExportedProgram

from tokopt.ir.errors import InputError
from tokopt.ir.output_names import structural_names
from tokopt.ir.tensors import tensor_inputs, tensor_outputs


@dataclass(frozen=True)
class Link:
    """``output`` of program ``source`` is ``input`` of program ``target``."""

    source: str
    output: str
    target: str
    input: str

    def __str__(self) -> str:
        return f"{self.source}.{self.output} → {self.target}.{self.input}"


@dataclass(frozen=True)
class _End:
    """One tensor that a program takes or gives; ``value`` is its fake tensor."""

    program: str
    name: str
    value: torch.Tensor

    @property
    def form(self) -> str:
        sizes = ", ".join("?" if isinstance(n, torch.SymInt) else str(n) for n in self.value.shape)
        return f"{str(self.value.dtype).removeprefix('torch.')} [{sizes}]"

    def fits(self, other: _End) -> bool:
        """Whether both can be one tensor: a free size fits any."""
        a, b = self.value, other.value
        sizes = zip(a.shape, b.shape, strict=False)
        free = (
            isinstance(m, torch.SymInt) or isinstance(n, torch.SymInt) or m == n for m, n in sizes
        )
        return a.dtype == b.dtype and a.ndim == b.ndim and all(free)


def find_links(graphs: Mapping[str, ExportedProgram]) -> tuple[Link, ...]:
    """Return every link between ``graphs``, in the order of the inputs.

    An input of an output's name is that output (``cache.0`` is the name ``cache_0`` too).  Inputs
    of one form are, in order, the outputs that fit it, where one program gives equally many.
    Raises ``InputError`` where names and forms contradict each other, leave a choice, or let
    programs feed each other in a circle.
    """
    outputs = [end for name, graph in graphs.items() for end in _outputs(name, graph)]
    links = []
    for name, graph in graphs.items():
        inputs = [_End(name, tensor.name, tensor.value) for tensor in tensor_inputs(graph)]
        others = [end for end in outputs if end.program != name]
        named = {end.name: source for end in inputs if (source := _named(end, others))}
        rest = [end for end in inputs if end.name not in named]
        free = [end for end in others if end not in named.values()]
        found = named | _formed(rest, free)
        links += [
            Link(found[end.name].program, found[end.name].name, name, end.name)
            for end in inputs
            if end.name in found
        ]
    _refuse_circle(links)
    return tuple(links)


def _refuse_circle(links: Sequence[Link]) -> None:
    order = networkx.DiGraph((link.source, link.target) for link in links)
    if not networkx.is_directed_acyclic_graph(order):
        circle = [source for source, _ in networkx.find_cycle(order)]
        raise InputError(
            f"by their shapes, programs {' and '.join(circle)} would feed each other",
            expected="programs that run one after the other",
            hint="return dictionaries from the exported modules, with the name of the input that "
            "an output is meant for as its key",
        )


def _outputs(name: str, graph: ExportedProgram) -> list[_End]:
    tensors = tensor_outputs(graph)
    names = structural_names(graph, [tensor.place for tensor in tensors], [])
    return [_End(name, text, tensor.value) for text, tensor in zip(names, tensors, strict=True)]


def _named(end: _End, outputs: list[_End]) -> _End | None:
    """Return the output of an input's name."""
    found = [output for output in outputs if re.sub(r"\W", "_", output.name) == end.name]
    if len(found) > 1:
        raise _choice([end], found)
    if found and not found[0].fits(end):
        raise InputError(
            f"output {found[0].name!r} of program {found[0].program!r} is {found[0].form}, and the "
            f"input of that name of program {end.program!r} is {end.form}",
            expected="one dtype and shape for both, or two names",
            hint="export both programs from the same configuration, or rename one of the two",
        )
    return found[0] if found else None


def _formed(inputs: list[_End], outputs: list[_End]) -> dict[str, _End]:
    """Return, by input name, the outputs that inputs without a namesake are by their form."""
    found: dict[str, _End] = {}
    for _, group in groupby(sorted(inputs, key=lambda end: end.form), key=lambda end: end.form):
        members = list(group)
        fitting = [output for output in outputs if output.fits(members[0])]
        programs = {output.program for output in fitting}
        if fitting and (len(programs) > 1 or len(fitting) != len(members)):
            raise _choice(members, fitting)
        found |= {end.name: output for end, output in zip(members, fitting, strict=False)}
    return found


def _choice(inputs: list[_End], outputs: list[_End]) -> InputError:
    given = ", ".join(f"{end.program}.{end.name}" for end in outputs[:6])
    taken = ", ".join(f"{end.program}.{end.name}" for end in inputs[:6])
    return InputError(
        f"it is not clear which of {given} is {taken} ({inputs[0].form})",
        expected="an output with the name of the input, or one candidate for each input",
        hint=f"return a dictionary with the input's name as its key ({{{inputs[0].name!r}: …}}) "
        "from the module that makes it, and export again",
    )
