"""Followers: programs behind the main one (decode), judged on what a shortened one hands them.

``following``  a follower run on the shorter tensors gives what the same program gives on those of
               full length with the dropped rows masked

That is what would be wrong where a program counts the rows of its cache instead of being told the
position.  The values are the rewritten program's in both runs; where in the full length they belong
the oracle says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import analyse
from tokopt.ir.lengths import length_of, same_length
from tokopt.ir.links import Link, outputs_by_name
from tokopt.ir.outer import Place
from tokopt.ir.program import Program
from tokopt.ir.tensors import tensor_inputs
from tokopt.ir.tolerances import ORACLE
from tokopt.passes.oracle.compare import compare_outputs
from tokopt.passes.oracle.oracle import run_masked, run_oracle
from tokopt.passes.validate import (
    Checked,
    Verdict,
    alive_rows,
    relative_difference,
    run_program,
    split_trace,
)

WHY = (
    "if it counts the rows of its cache to know the position, export it with the position as an "
    "input"
)


@dataclass(frozen=True)
class Followers:
    """``names`` in the order they run; ``places``: program and name of each joined output."""

    program: Program
    names: Sequence[str]
    links: Sequence[Link]
    places: Sequence[Place]

    def judge(
        self,
        checked: Checked,
        inputs: Mapping[str, Tensor],
        own: Mapping[str, Mapping[str, Tensor]],
    ) -> Iterator[Verdict]:
        """Yield a verdict for each follower.

        ``inputs`` are those of the joined program, ``own`` of each follower what no link gives.
        """
        if not self.names:
            return
        outputs, kept = split_trace(checked, run_program(checked.applied.exported, inputs))
        short: dict[Place, Tensor] = dict(zip(self.places, outputs, strict=True))
        whole = self._whole(checked, inputs, kept, short)
        for name in self.names:
            graph = self.program.graphs[name]
            links = [link for link in self.links if link.target == name]
            now, before = (
                {**own[name], **{x.input: known[x.source, x.output] for x in links}}
                for known in (short, whole)
            )
            now = _cut_masks(graph, [x.input for x in links], now, before)
            wanted = run_masked(analyse(graph), before)
            got = dict(zip(wanted, run_program(graph, now, full=True), strict=True))
            wrong = compare_outputs(wanted, got, ORACLE)
            worst = max((_difference(wanted[n], got[n]) for n in wanted), default=0.0)
            message = "" if wrong is None else f"{name!r} on fewer rows: {wrong}; {WHY}"
            compared = f"{name} on what is handed over, with dropped rows masked"
            yield Verdict("following", wrong is None, compared, worst, ORACLE, message)
            for (output, node), value in zip(
                outputs_by_name(graph).items(), got.values(), strict=True
            ):
                short[name, output] = value.to(node.meta["val"].dtype)
                whole[name, output] = _spread(short[name, output], wanted[node.name])

    def _whole(
        self,
        checked: Checked,
        inputs: Mapping[str, Tensor],
        kept: Sequence[Tensor],
        short: Mapping[Place, Tensor],
    ) -> dict[Place, Tensor]:
        """Return what is handed over at full length, NaN where rows were dropped."""
        free = run_oracle(checked.facts, checked.plan, inputs, checked.methods)
        alive = [alive_rows(rows, c.alive) for rows, c in zip(kept, free.stages, strict=True)]
        if any(not torch.equal(a, c.alive) for a, c in zip(alive, free.stages, strict=True)):
            free = run_oracle(checked.facts, checked.plan, inputs, checked.methods, alive)
        wanted = dict(zip(self.places, free.outputs.values(), strict=True))
        handed = {(link.source, link.output) for link in self.links}
        return {place: _spread(short[place], wanted[place]) for place in wanted if place in handed}


def _cut_masks(
    graph: ExportedProgram,
    linked: Sequence[str],
    now: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the inputs for a short cache, masks ``[B, rows + 1]`` of a whole one cut like it."""
    found, inputs = dict(now), {t.name: t.value for t in tensor_inputs(graph)}
    for name, value in inputs.items():
        if name in linked or value.ndim != 2 or value.is_floating_point():
            continue
        for other in linked:
            for dim, size in enumerate(inputs[other].shape):
                rows = length_of(size)
                if not isinstance(rows, int) and same_length(length_of(value.shape[1]), rows + 1):
                    whole = before[other].movedim(dim, 1).flatten(2)
                    alive = torch.cat([~whole.isnan().any(2), torch.ones(len(whole), 1).bool()], 1)
                    found[name] = now[name][alive].unflatten(0, (len(whole), -1))
    return found


def refuse_lengths(
    program: Program, links: Sequence[Link], handed: Mapping[Place, Tensor], names: Sequence[str]
) -> None:
    """Raise ``UnsupportedError`` where a follower takes a constant number of rows that is gone.

    And where it takes two tensors by one free length that are left with different ones.  ``handed``
    are the recorded values of what followers (``names``) are given behind the rewrite.
    """
    lengths: dict[tuple[str, str], tuple[str, Link]] = {}
    for link in links:
        if link.target not in names or (link.source, link.output) not in handed:
            continue
        graph = program.graphs[link.target]
        taken = next(t.value for t in tensor_inputs(graph) if t.name == link.input)
        given = handed[link.source, link.output]
        for dim, (now, fixed) in enumerate(zip(given.shape, taken.shape, strict=True)):
            before = outputs_by_name(program.graphs[link.source])[link.output].meta["val"]
            same = str(now) in (str(fixed), str(before.shape[dim]))
            if isinstance(fixed, int) and not same:
                raise UnsupportedError(
                    f"{link.target!r} takes {fixed} rows as {link.input!r}, and {link.source!r} "
                    f"would leave {now}",
                    expected=f"a program {link.target!r} with a free size there (dim {dim})",
                    hint=f"export {link.target!r} with dynamic_shapes for that dim",
                )
            left, other = lengths.setdefault((link.target, str(fixed)), (str(now), link))
            if not isinstance(fixed, int) and left != str(now):
                raise UnsupportedError(
                    f"{link.target!r} takes {other.input!r} and {link.input!r} of one length, and "
                    f"{link.source!r} would leave {left} and {now} rows",
                    expected="a free length of its own for each of them",
                    hint=f"export {link.target!r} with a Dim of its own for each layer's cache",
                )


def _spread(short: Tensor, wanted: Tensor) -> Tensor:
    """Return a short tensor's values at the places that are not NaN in a full-length one."""
    dead = wanted.isnan()
    if not bool(dead.any()):
        return short
    if not short.is_floating_point():
        raise UnsupportedError("a program takes whole numbers of which rows were dropped")
    whole = torch.full(wanted.shape, torch.nan, dtype=short.dtype)
    return whole.masked_scatter(~dead, short)


def _difference(wanted: Tensor, got: Tensor) -> float:
    if wanted.shape != got.shape:
        return 0.0
    there = ~wanted.isnan()
    return relative_difference(wanted[there], got[there])
