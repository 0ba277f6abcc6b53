"""A sparse step is the full one with rows masked, whatever the cache's length."""

from __future__ import annotations

import pytest
import torch
from testsuite.passes.sparse_decode.grouped import CACHES, given, step
from torch.export import ExportedProgram

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.structure import structural_faults
from tokopt.passes.decompose import decompose
from tokopt.passes.sparse_decode.groups import Groups
from tokopt.passes.sparse_decode.masked import run_sparse
from tokopt.passes.sparse_decode.pages import Pages
from tokopt.passes.sparse_decode.sparsify import sparsify
from tokopt.passes.validate import relative_difference, run_program

GROUPS, PAGES = Groups(4, (), (0, 2)), Pages(4, 5, 2)
LENGTHS = (2, 20, 61)


@pytest.fixture(scope="module", params=[False, True], ids=["bools", "summands"])
def full(request: pytest.FixtureRequest) -> ExportedProgram:
    return step(summand=request.param)


def test_it_gives_what_the_full_step_gives_with_all_other_rows_masked(
    full: ExportedProgram,
) -> None:
    sparse = sparsify(full, CACHES, GROUPS, PAGES)
    assert not structural_faults(sparse)
    for rows in LENGTHS:
        inputs = given(rows, 3)
        wanted = run_sparse(full, CACHES, GROUPS, PAGES, inputs)
        got = run_program(decompose(sparse), inputs)
        count = len(wanted.outputs)
        for chosen, pages in zip(got[count:], wanted.chosen, strict=True):
            last = rows // PAGES.page
            assert [[p for p in item if p <= last] for item in chosen.tolist()] == pages
        for one, other in zip(wanted.outputs, got[:count], strict=True):
            assert relative_difference(one, other) < 1e-5


def test_short_caches_and_as_many_pages_as_there_are_change_nothing(full: ExportedProgram) -> None:
    for pages, lengths in ((PAGES, (2, 19)), (Pages(4, 16, 2), (20, 61))):
        sparse = sparsify(full, CACHES, GROUPS, pages)
        for rows in lengths:
            inputs = given(rows, 2)
            wanted, got = run_program(full, inputs), run_program(sparse, inputs)
            for one, other in zip(wanted, got, strict=False):
                assert relative_difference(one, other) < 1e-6


def test_pages_that_are_dropped_are_not_read_by_sparse_layers(full: ExportedProgram) -> None:
    """What lies in them is changed: layers that read all see it, those that follow do not."""
    inputs, sparse = given(40, 1), sparsify(full, CACHES, GROUPS, PAGES)
    first = run_program(sparse, inputs)
    chosen = first[-2][0].tolist()
    dropped = next(page for page in range(10) if page not in chosen)
    at = slice(dropped * PAGES.page, (dropped + 1) * PAGES.page)
    for name in CACHES[2:4]:  # of layer 1, which follows layer 0
        changed = inputs[name].clone()
        changed[:, :, at] = 50.0
        inputs[name] = changed
    again = run_program(sparse, inputs)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(run_program(full, inputs)[0], run_program(full, given(40, 1))[0])


def test_what_is_chosen_matters_and_other_pages_are_told_from_it(full: ExportedProgram) -> None:
    inputs = given(61, 2)
    best = run_sparse(full, CACHES, GROUPS, PAGES, inputs)
    other = [torch.tensor([[0, 1, 2, 14, 15]] * 2)] * 2
    assert best.chosen != [one.tolist() for one in other]
    forced = run_sparse(full, CACHES, GROUPS, PAGES, inputs, forced=other)
    assert relative_difference(best.outputs[0], forced.outputs[0]) > 1e-2


def test_a_cache_that_is_read_in_another_way_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="written out"):
        sparsify(step(summand=True, written_out=True), CACHES, GROUPS, PAGES)
