"""What a dim rule claims of a call, held against the operator itself on real tensors.

Let X be an axis without pieces that no operand dim mixes, moves or reads a range of.

equivariance  X's rows permuted in all operands permute the results' rows, and nothing else
locality      where X is not folded, another row i of X changes results in row i alone
range         rows outside a picked range change nothing, each row inside changes something
move          an entry of a result that rows move to is an entry of the operand's same line
unread        other entries of an operand that is not read change nothing
completeness  every operand dim is linked in all its rows, or folded, picked, moved or mixed
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from testsuite.ir.rules.sample import RANDOM, Sample
from testsuite.ir.rules.tree import count, inside, permuted, places
from torch import Tensor, fx

from tokopt.ir.axis import Axis
from tokopt.ir.call import Uses
from tokopt.ir.rules.factory import FACTORIES


@dataclass(frozen=True)
class Claim:
    """A sample with all that the table says of it."""

    sample: Sample
    operands: list[fx.Node]
    axes: list[list[Axis]]
    outs: list[list[Axis]]
    uses: Uses

    @property
    def tensors(self) -> list[Tensor]:
        return self.sample.tensors()

    def leaves(self) -> list[Axis]:
        """Axes without pieces, longer than 1, of the operands' dims."""
        every = {id(a): a for axes in self.axes for axis in axes for a in inside(axis)}
        return [a for a in every.values() if count(a) > 1 and not a.parts and not a.factors]

    def unclaimed(self) -> set[int]:
        """Ids of axes of which nothing is claimed: mixed or moved; whole where a range is read."""
        found: set[int] = set()
        for move in self.uses.moves:
            found |= {id(a) for a in inside(self._axis(move.operand, move.dim))}
        for mix in self.uses.mixes:
            found |= {id(a) for a in inside(mix.factor or self._axis(mix.operand, mix.dim))}
        return found | {id(self._axis(p.operand, p.dim).root) for p in self.uses.picks}

    def folded(self) -> set[int]:
        return {id(a) for o, d in self.uses.folds for a in inside(self._axis(o, d))}

    def _axis(self, operand: fx.Node, dim: int) -> Axis:
        return self.axes[self.operands.index(operand)][dim]


def claim(sample: Sample) -> Claim:
    dims, node, operands = sample.infer()
    outs = dims.outs.get(node) or ([dims.axes[node]] if node in dims.axes else [])
    return Claim(
        sample, operands, [dims.axes[o] for o in operands], list(outs), dims.uses.get(node, Uses())
    )


def violations(sample: Sample) -> list[str]:
    """Return every law that a claim breaks, in words."""
    said = claim(sample)
    found = list(_incomplete(said))
    if not sample.random:
        found += [*_not_equivariant(said), *_not_local(said), *_wrong_range(said), *_changed(said)]
        found += _read_after_all(said)
    return found


def _incomplete(said: Claim) -> Iterator[str]:
    if said.sample.name in FACTORIES:
        return
    reached = {id(a) for axes in said.outs for axis in axes for a in inside(axis)}
    used = {(u.operand, u.dim) for u in (*said.uses.picks, *said.uses.moves, *said.uses.mixes)}
    for operand, axes in zip(said.operands, said.axes, strict=True):
        for dim, axis in enumerate(axes):
            mentioned = (operand, dim) in used | said.uses.folds
            if count(axis) > 1 and not mentioned and not _reaches(axis.root, reached):
                yield f"completeness: nothing is said of dim {dim} of {operand.name}"


def _reaches(axis: Axis, reached: set[int]) -> bool:
    pieces = [[p.root for p in ps] for ps in (axis.parts, axis.factors) if ps]
    return id(axis) in reached or any(all(_reaches(p, reached) for p in ps) for ps in pieces)


def _not_equivariant(said: Claim) -> Iterator[str]:
    wanted = said.sample.run(said.tensors)
    for axis in said.leaves():
        if id(axis) in said.unclaimed() or (said.sample.ordered and id(axis) in said.folded()):
            continue
        order = _order(count(axis))
        given = [
            _reordered(t, axes, axis, order)
            for t, axes in zip(said.tensors, said.axes, strict=True)
        ]
        got = _run(said, given, wanted)
        for which, (one, other) in enumerate(zip(wanted, got, strict=True)):
            axes = said.outs[which] if which < len(said.outs) else []
            if not same(_reordered(one, axes, axis, order), other):
                yield f"equivariance: rows of an axis of {count(axis)}, result {which}"


def _run(said: Claim, given: list[Tensor], wanted: list[Any]) -> list[Any]:
    """Run on changed operands: None for each result of another shape, or that there is not."""
    try:
        got = said.sample.run(given)
    except (RuntimeError, IndexError):
        return [None] * len(wanted)
    shapes = [
        (getattr(a, "shape", ()), getattr(b, "shape", ())) for a, b in zip(wanted, got, strict=True)
    ]
    return [b if one == other else None for b, (one, other) in zip(got, shapes, strict=True)]


def _order(rows: int) -> Tensor:
    """A permutation that is one cycle: it moves every row."""
    cycle = torch.randperm(rows, generator=RANDOM)
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return order


def _reordered(value: Any, axes: list[Axis], axis: Axis, order: Tensor) -> Any:
    for dim, own in enumerate(axes if isinstance(value, Tensor) else []):
        value = value.index_select(dim, permuted(own, axis, order))
    return value


def _not_local(said: Claim) -> Iterator[str]:
    wanted = said.sample.run(said.tensors)
    for axis in said.leaves():
        if id(axis) in said.unclaimed() | said.folded():
            continue
        given = [
            _with_row_changed(t, axes, axis)
            for t, axes in zip(said.tensors, said.axes, strict=True)
        ]
        got = _run(said, given, wanted)
        for which, (one, other) in enumerate(zip(wanted, got, strict=True)):
            axes = said.outs[which] if which < len(said.outs) else []
            if not same(_without_row(one, axes, axis), _without_row(other, axes, axis)):
                yield f"locality: row 1 of an axis of {count(axis)} changes others, result {which}"


def _with_row_changed(tensor: Tensor, axes: list[Axis], axis: Axis) -> Tensor:
    hit = torch.zeros(tensor.shape, dtype=torch.bool)
    for dim, own in enumerate(axes):
        line = places(own, axis) == 1
        hit |= line.reshape([-1 if d == dim else 1 for d in range(tensor.ndim)])
    return torch.where(hit, _shuffled(tensor), tensor)


def _without_row(value: Any, axes: list[Axis], axis: Axis) -> Any:
    for dim, own in enumerate(axes if isinstance(value, Tensor) else []):
        value = value.index_select(dim, (places(own, axis) != 1).nonzero().flatten())
    return value


def _shuffled(tensor: Tensor) -> Tensor:
    """Other entries, each of them one that the tensor has (so that indices stay in range)."""
    by = 1 + int(torch.randint(max(1, tensor.numel() - 1), (), generator=RANDOM))
    return tensor.flatten().roll(by).reshape(tensor.shape)


def _wrong_range(said: Claim) -> Iterator[str]:
    wanted = said.sample.run(said.tensors)
    for operand, dim in {(p.operand, p.dim) for p in said.uses.picks}:
        at = said.operands.index(operand)
        tensor = said.tensors[at]
        read = torch.zeros(tensor.shape[dim], dtype=torch.bool)
        for pick in said.uses.picks:
            if (pick.operand, pick.dim) == (operand, dim):
                assert isinstance(pick.start, int) and isinstance(pick.length, int)
                read[pick.start : pick.start + pick.length] = True
        for row in range(tensor.shape[dim]):
            other = tensor.clone()
            other.select(dim, row).copy_(-other.select(dim, row) - 1)
            given = [other if i == at else t for i, t in enumerate(said.tensors)]
            changed = not all(map(same, wanted, said.sample.run(given)))
            if changed != bool(read[row]):
                yield f"range: row {row} of dim {dim} is {'' if changed else 'not '}read"


def _read_after_all(said: Claim) -> Iterator[str]:
    wanted = said.sample.run(said.tensors)
    for operand in said.uses.unread:
        at = said.operands.index(operand)
        given = [_shuffled(t) + 1 if i == at else t for i, t in enumerate(said.tensors)]
        if not all(map(same, wanted, said.sample.run(given))):
            yield f"unread: {operand.name} is read"


def _changed(said: Claim) -> Iterator[str]:
    """In each line of linked dims, result 0 holds operand entries alone, or (a write) all."""
    for operand, axes, tensor in zip(said.operands, said.axes, said.tensors, strict=True):
        moves = [m for m in said.uses.moves if m.operand is operand]
        targets = [m.out for m in moves if m.out is not None]
        if not moves or len(targets) < len(moves):
            continue
        result = said.sample.run(said.tensors)[0]
        left = [d for d in range(result.ndim) if d not in targets]
        kept = [d for d in range(tensor.ndim) if d not in {m.dim for m in moves}]
        lines: list[int] = []
        for dim in kept:
            found = [d for d in left if count(axes[dim]) > 1 and _has(axes[dim], said.outs[0][d])]
            if found:
                rows = places(axes[dim], said.outs[0][found[0]])
                tensor = tensor.index_select(dim, (rows >= 0).nonzero().flatten())
                lines.append(found[0])
            elif count(axes[dim]) > 1:
                yield f"move: dim {dim} of {operand.name}, beside moved ones, is not linked"
        own = tensor.permute([*kept, *(m.dim for m in moves)])
        own = own.reshape([result.shape[d] for d in lines] + [-1])
        new = result.permute([*lines, *(d for d in range(result.ndim) if d not in lines)])
        equal = new.flatten(len(lines)).unsqueeze(-1) == own.unsqueeze(-2)
        if not (equal.any(-1).all() or equal.any(-2).all()):
            yield f"move: rows of {operand.name} are not rows of the result"


def _has(axis: Axis, piece: Axis) -> bool:
    return any(found is piece.root for found in inside(axis))


def same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return bool(a == b)
    if a.shape == b.shape and (a.is_floating_point() or a.is_complex()):
        return torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)
    return torch.equal(a, b)
