from __future__ import annotations

from math import prod

import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from testsuite.ir.rules.tree import inside

from tokopt.ir.axis import (
    Axis,
    align_factors,
    align_parts,
    locate,
    split,
    split_factor,
    unify,
)
from tokopt.ir.lengths import is_longer, product, same_length, total
from tokopt.ir.slicing import sliced

S = sympy.Symbol("s", positive=True, integer=True)


def joined(*parts: Axis) -> Axis:
    return Axis(total([p.root.length for p in parts]), parts=list(parts))


def cut(axis: Axis, at: int) -> tuple[Axis, Axis]:
    pieces = split(axis, at)
    assert pieces is not None
    return pieces


def lengths(axes: list[Axis]) -> list[object]:
    return [axis.root.length for axis in axes]


def test_axes_of_one_class_have_one_root_and_other_lengths_stay_apart() -> None:
    a, b, c, d = Axis(5), Axis(5), Axis(5), Axis(6)
    assert unify(a, b) and unify(b, c) and a.root is c.root
    assert not unify(a, d) and a.root is not d.root
    assert not unify(Axis(S), Axis(5)) and unify(Axis(2 * S), Axis(S + S))


def test_rows_learned_on_either_side_are_learned() -> None:
    a, b = Axis(2, learned=True), Axis(2)
    assert unify(a, b) and b.root.learned
    c, d = Axis(2), Axis(2, learned=True)
    assert unify(c, d) and c.root.learned


def test_two_concatenations_of_one_axis_are_cut_at_all_boundaries() -> None:
    a, b, c, d = Axis(1), Axis(9), Axis(4), Axis(6)
    x, y = joined(a, b), joined(c, d)
    assert unify(x, y)
    assert lengths(x.leaves()) == lengths(y.leaves()) == [1, 3, 6]
    assert x.leaves()[0] is a.root and x.leaves()[2] is d.root
    assert b.leaves() == x.leaves()[1:] and c.leaves() == x.leaves()[:2]


def test_a_prefix_is_cut_off_rows_of_symbolic_count() -> None:
    cls, rows = Axis(1), Axis(S)
    x, y = joined(cls, rows), joined(Axis(1), Axis(S))
    assert unify(x, y)
    assert y.leaves() == [cls.root, rows.root]


def test_a_boundary_that_a_symbol_leaves_open_is_not_cut() -> None:
    a, b = Axis(S), Axis(7)
    assert not align_parts([a, Axis(7)], [b, Axis(S)])
    assert a.leaves() == [a] and b.leaves() == [b]


def test_a_split_is_made_once_and_found_again() -> None:
    axis = Axis(10)
    head, tail = cut(axis, 4)
    assert cut(axis, 4)[0] is head and lengths([head, tail]) == [4, 6]
    first, rest = cut(axis, 6)
    assert lengths(axis.leaves()) == [4, 2, 4]
    assert first.leaves() == axis.leaves()[:2] and rest.root is axis.leaves()[2]


def test_pieces_of_learned_rows_are_learned() -> None:
    assert all(piece.learned for piece in cut(Axis(3, learned=True), 1))


def test_a_boundary_that_may_lie_in_either_of_two_parts_is_not_made() -> None:
    x = joined(front := Axis(S), back := Axis(9))
    assert split(x, 5) is None and sliced(x, 5, 2) is None
    assert x.leaves() == [front, back]
    assert not align_parts([x], [Axis(5), Axis(S + 4)])
    assert x.leaves() == [front, back]


def test_a_slice_is_the_axis_of_its_rows() -> None:
    cls, rows, end = Axis(1), Axis(6), Axis(2)
    x = joined(cls, rows, end)
    assert sliced(x, 0, 9) is x and sliced(x, 1, 6) is rows and sliced(x, 0, 1) is cls
    middle = sliced(x, 3, 2)
    assert middle is not None and lengths(x.leaves()) == [1, 2, 2, 2, 2]
    assert middle.root is x.leaves()[2]


def test_a_slice_of_symbolic_rows_is_found_where_it_can_be() -> None:
    x = joined(Axis(1), rows := Axis(S))
    assert sliced(x, 1, S) is rows
    assert sliced(Axis(S), 5, 3) is None and sliced(Axis(S + 9), S, 9) is not None


def test_two_products_are_cut_into_common_factors() -> None:
    batch, tokens = Axis(2), Axis(12)
    flat = Axis(24)
    assert align_factors([batch, tokens], [flat])
    heads = [Axis(2), Axis(3), Axis(4)]
    assert align_factors([flat], heads)
    assert heads[0].root is batch.root and lengths(tokens.root.factors) == [3, 4]
    assert heads[1].root is tokens.root.factors[0].root


def test_products_of_symbolic_sizes_are_cut_too() -> None:
    batch, rows, flat = Axis(S), Axis(6), Axis(6 * S)
    assert align_factors([flat], [batch, rows])
    assert align_factors([Axis(2 * S), third := Axis(3)], [Axis(S), Axis(6)])
    assert third.factors == []


def test_sizes_of_one_do_not_count_as_factors() -> None:
    a, b = Axis(3), Axis(3)
    assert align_factors([Axis(1), a, Axis(1)], [b]) and a.root is b.root


def test_a_regrouping_without_common_factors_is_refused() -> None:
    assert not align_factors([Axis(4), Axis(6)], [Axis(6), Axis(4)])
    assert not align_factors([Axis(4)], [Axis(4), Axis(2)])


def test_two_regroupings_that_do_not_nest_are_refused_and_nothing_is_made_up() -> None:
    x, other = Axis(24), Axis(6)
    assert align_factors([x], [Axis(4), Axis(6)])
    assert split_factor(x, 6) is None
    assert not align_factors([x], [other, Axis(4)])
    assert other.factors == [] and not any(other.root is a for a in inside(x))
    assert lengths(x.root.factors) == [4, 6]


def test_an_axis_is_located_through_parts_and_factors() -> None:
    tokens, batch, cls = Axis(6), Axis(2), Axis(1)
    rows = joined(cls, tokens)
    flat = Axis(14, factors=[batch, rows])
    place = locate(flat, tokens)
    assert place is not None and not place.whole
    assert [(kind, index) for kind, _, index in place.path] == [("*", 1), ("+", 1)]
    assert place.path[0][1] == (batch, rows)
    whole = locate(tokens, tokens)
    assert whole is not None and whole.whole
    assert locate(batch, tokens) is None and locate(tokens, flat) is None


sizes = st.lists(st.integers(1, 6), min_size=1, max_size=4)
steps = st.lists(
    st.tuples(
        st.sampled_from(["new", "join", "view", "same", "slice"]),
        sizes,
        st.integers(0, 30),
        st.integers(0, 30),
    ),
    max_size=25,
)


@settings(max_examples=80, deadline=None)
@given(steps)
def test_whatever_is_unified_pieces_fit_their_axis(program) -> None:  # type: ignore[no-untyped-def]
    pool = [Axis(4), Axis(6)]
    for kind, counts, i, j in program:
        a, b = pool[i % len(pool)], pool[j % len(pool)]
        if kind == "new":
            pool += [Axis(n) for n in counts]
        elif kind == "join":  # a cat, and a value of the same rows cut elsewhere
            pool.append(joined(a, b))
            rows = int(pool[-1].length)  # type: ignore[arg-type]
            if 1 < rows:
                cut = 1 + counts[0] % (rows - 1)
                unify(pool[-1], joined(Axis(cut), Axis(rows - cut)))
        elif kind == "view":
            out = [Axis(n) for n in counts]
            if prod(counts) == a.root.length and align_factors([a], out):
                pool += out
            pool.append(flat := Axis(product([a.root.length, b.root.length])))
            assert align_factors([a, b], [flat])
        elif kind == "same":
            same = a.root.length == b.root.length
            assert unify(a, b) == same and (a.root is b.root) == same
        elif int(a.root.length) > 1:  # type: ignore[arg-type]
            start = j % (int(a.root.length) - 1)  # type: ignore[arg-type]
            piece = sliced(a, start, 1)
            assert piece is not None and piece.root.length == 1
        pool = [x for x in pool if int(x.root.length) < 5000][-30:]  # type: ignore[arg-type]
    for axis in pool:
        check(axis)


def check(axis: Axis) -> None:
    assert same_length(total([leaf.length for leaf in axis.leaves()]), axis.root.length)
    for piece in inside(axis):
        if piece.parts:
            assert total([p.root.length for p in piece.parts]) == piece.length
        if piece.factors:
            assert product([f.root.length for f in piece.factors]) == piece.length
        place = locate(axis, piece)
        assert place is not None
        found = axis.root
        for _, children, index in place.path:
            found = children[index].root
        assert found is piece.root


pieces = st.lists(st.sampled_from([1, 2, 5, S, S + 3, 2 * S]), min_size=1, max_size=4)
cuts = st.lists(st.tuples(pieces, pieces, st.integers(0, 12), st.integers(1, 4)), max_size=8)


@settings(max_examples=50, deadline=None)
@given(cuts)
def test_no_boundary_is_made_that_some_size_puts_elsewhere(program) -> None:  # type: ignore[no-untyped-def]
    pool: list[Axis] = []
    for front, back, start, count in program:
        a, b = (joined(*(Axis(n) for n in ns)) for ns in (front, back))
        c = joined(a, b)
        unify(joined(*(Axis(n) for n in sorted(back + front, key=str))), c)
        sliced(c, start, count)
        pool += [a, b, c]
    for axis in pool:
        assert same_length(total([leaf.length for leaf in axis.leaves()]), axis.root.length)
        for piece in inside(axis):
            assert is_longer(0, piece.length) is False
