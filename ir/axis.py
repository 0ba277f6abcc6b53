"""Axis: what one dim of one value counts, found by unification.

Every dim of every value gets an axis; ops say which axes are the same (``unify``).  An axis can be
refined in two ways, and a dim keeps both: as a *concatenation* of parts (``cat``, ``slice``: a CLS
row in front of the patches) and as a *product* of factors, outer first (``view``: batch x tokens,
2x2 groups).  It is type inference for dims: union-find with structure.  XLA's Shardy propagates
shardings over per-op factors in the same spirit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tokopt.ir.lengths import Length, is_longer, is_one, minus, quotient, same_length


@dataclass(eq=False)
class Axis:
    """One equivalence class of dims: same length, same order of rows.

    ``parts`` concatenate to the axis, ``factors`` multiply to it (outer first); both are empty
    while nothing is known.  ``learned`` marks rows that come from parameters alone.
    """

    length: Length
    parts: list[Axis] = field(default_factory=list)
    factors: list[Axis] = field(default_factory=list)
    learned: bool = False
    parent: Axis | None = None

    @property
    def root(self) -> Axis:
        """The representative of this axis's class."""
        axis = self
        while axis.parent is not None:
            if axis.parent.parent is not None:
                axis.parent = axis.parent.parent
            axis = axis.parent
        return axis

    def leaves(self) -> list[Axis]:
        """Return the finest known concatenation of the axis, in order."""
        root = self.root
        if not root.parts:
            return [root]
        return [leaf for part in root.parts for leaf in part.leaves()]

    def primes(self) -> list[Axis]:
        """Return the finest known factors of the axis, outer first, those of length 1 left out."""
        root = self.root
        if not root.factors:
            return [root]
        return [p for f in root.factors for p in f.primes() if not is_one(p.length)]

    def atoms(self) -> list[Axis]:
        """Return all pieces of the axis that have no pieces, by parts and by factors."""
        root = self.root
        children = [*root.parts, *root.factors]
        return [a for child in children for a in child.atoms()] if children else [root]


def unify(a: Axis, b: Axis) -> bool:
    """Make two axes one.  Returns False (and changes nothing) where their lengths may differ."""
    a, b = a.root, b.root
    if a is b:
        return True
    if not same_length(a.length, b.length):
        return False
    a.parent = b
    b.learned = b.learned or a.learned
    a_parts, b_parts, b.parts = a.parts, b.parts, a.parts or b.parts
    if a_parts and b_parts:
        b.parts = b_parts
        align_parts(a_parts, b_parts)
    a_factors, b_factors, b.factors = a.factors, b.factors, a.factors or b.factors
    if a_factors and b_factors:
        b.factors = b_factors
        align_factors(a_factors, b_factors)
    return True


def align_parts(xs: Sequence[Axis], ys: Sequence[Axis]) -> bool:
    """Unify two concatenations of the same rows, splitting the longer part at each boundary."""
    left, right = [x.root for x in reversed(xs)], [y.root for y in reversed(ys)]
    while left and right:
        x, y = left.pop().root, right.pop().root
        if same_length(x.length, y.length):
            unify(x, y)
            continue
        longer = is_longer(x.length, y.length)
        if longer is None:
            return False
        pieces = split(x, y.length) if longer else split(y, x.length)
        if pieces is None:
            return False
        unify(pieces[0], y if longer else x)
        (left if longer else right).append(pieces[1])
    return True


def split(axis: Axis, at: Length) -> tuple[Axis, Axis] | None:
    """Refine an axis into the first ``at`` rows and the rest; ``0 < at < length`` must hold.

    None where a symbol leaves open which of the known parts the boundary lies in.
    """
    axis = axis.root
    rest = minus(axis.length, at)
    if not axis.parts:
        axis.parts = [Axis(at, learned=axis.learned), Axis(rest, learned=axis.learned)]
        return axis.parts[0], axis.parts[1]
    head: list[Axis] = []
    tail = [part.root for part in axis.parts]
    left = at
    while tail and not same_length(left, 0):
        part = tail.pop(0)
        longer = is_longer(part.length, left)
        if longer is None:
            return None
        if longer:
            if (pieces := split(part, left)) is None:
                return None
            head.append(pieces[0])
            tail.insert(0, pieces[1])
            break
        head.append(part)
        left = minus(left, part.length)
    return _joined(head, at), _joined(tail, rest)


def _joined(parts: list[Axis], length: Length) -> Axis:
    return parts[0].root if len(parts) == 1 else Axis(length, parts=parts)


def align_factors(xs: Iterable[Axis], ys: Iterable[Axis]) -> bool:
    """Unify two products of the same rows, splitting the longer factor where it divides.

    Returns False where the two cannot be refined to common factors: rows are regrouped in a way
    that no token axis survives.
    """
    left = [x.root for x in reversed(list(xs)) if not is_one(x.root.length)]
    right = [y.root for y in reversed(list(ys)) if not is_one(y.root.length)]
    while left and right:
        x, y = left.pop().root, right.pop().root
        if same_length(x.length, y.length):
            unify(x, y)
        elif quotient(x.length, y.length) is not None:
            if (pieces := split_factor(x, y.length)) is None:
                return False
            unify(pieces[0], y)
            left.extend(reversed(pieces[1]))
        elif quotient(y.length, x.length) is not None:
            if (pieces := split_factor(y, x.length)) is None:
                return False
            unify(x, pieces[0])
            right.extend(reversed(pieces[1]))
        else:
            return False
    return not left and not right


def split_factor(axis: Axis, outer: Length) -> tuple[Axis, list[Axis]] | None:
    """Refine an axis into an outer factor of the given length and the inner factors.

    None where the factors that are known do not nest with the new ones (24 rows as 4 x 6, then as
    6 x 4): no common refinement exists.
    """
    axis = axis.root
    inner_length = quotient(axis.length, outer)
    assert inner_length is not None
    if not axis.factors:
        axis.factors = [Axis(outer), Axis(inner_length)]
        return axis.factors[0], [axis.factors[1]]
    head: list[Axis] = []
    tail = [factor.root for factor in axis.factors]
    left = outer
    while tail and not is_one(left):
        factor = tail.pop(0)
        rest = quotient(left, factor.length)
        if rest is not None:
            head.append(factor)
            left = rest
        elif quotient(factor.length, left) is not None:
            if (pieces := split_factor(factor, left)) is None:
                return None
            head.append(pieces[0])
            tail = pieces[1] + tail
            left = 1
        else:
            return None
    if len(head) == 1:
        return head[0].root, tail
    return Axis(outer, factors=head), tail


Step = tuple[str, tuple[Axis, ...], int]


@dataclass(frozen=True)
class Place:
    """Where a token axis lies inside a dim: ``outer`` x (``before`` + tokens + ``after``) x inner.

    ``path`` walks from the dim's axis to the token axis: each step is ``(kind, children, index)``
    with kind ``"+"`` (concatenation) or ``"*"`` (product).
    """

    path: tuple[Step, ...]

    @property
    def whole(self) -> bool:
        """Whether the dim is the token axis itself."""
        return not self.path


def locate(dim: Axis, tokens: Axis) -> Place | None:
    """Return where ``tokens`` lies inside ``dim``, or None where it does not.

    A product of factors also lies where its factors stand one after the other.
    """
    tokens = tokens.root
    for place in _walk(dim.root, tokens, tokens.primes(), ()):
        return Place(place)
    return None


def _walk(
    axis: Axis, tokens: Axis, primes: list[Axis], path: tuple[Step, ...]
) -> Iterator[tuple[Step, ...]]:
    if axis is tokens:
        yield path
        return
    for kind, children in (("+", axis.parts), ("*", axis.factors)):
        roots = tuple(child.root for child in children)
        for index, child in enumerate(roots):
            yield from _walk(child, tokens, primes, (*path, (kind, roots, index)))
    if axis.factors and len(primes) > 1:
        own = axis.primes()
        for at in range(len(own) - len(primes) + 1):
            if own == primes:
                yield path
            elif own[at : at + len(primes)] == primes:
                run = (*own[:at], tokens, *own[at + len(primes) :])
                yield (*path, ("*", run, at))
