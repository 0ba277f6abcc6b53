"""The sparse gate: passes what is right, and tells each mistake a sparse step could make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from testsuite.passes.sparse_decode.grouped import CACHES, given, step
from torch import Tensor

from tokopt.cli.sparse_gate import Step, judge_step
from tokopt.ir.cache import Cache
from tokopt.ir.decoding import Decoding
from tokopt.ir.part import Part
from tokopt.passes.sparse_decode import pages, sparsify
from tokopt.passes.sparse_decode.groups import Groups
from tokopt.passes.sparse_decode.pages import Pages
from tokopt.passes.validate import Verdict


@pytest.fixture(scope="module")
def full() -> Step:
    grown = [f"grown_{number}" for number in range(len(CACHES))]
    caches = tuple(Cache(name, out, 2, True) for name, out in zip(CACHES, grown, strict=True))
    how = Decoding("decode", "", "", "x", None, "y", caches, mask="mask")
    part = Part(step(), ("y", *grown))
    return Step(part, how, Groups(4, (0,), (1,)), Pages(4, 5, 2), given(20, 2))


def judged(full: Step) -> list[Verdict]:
    made = sparsify.sparsify(full.plain.exported, CACHES, full.groups, full.pages)
    part = Part(made, (*full.plain.outputs, "pages"))
    return [*full.judge_identity(), judge_step(full, part, "torch", None, None)]


def test_a_right_step_passes(full: Step) -> None:
    verdicts = judged(full)
    assert [one.gate for one in verdicts] == ["sparse identity", "sparse"]
    assert all(one.passed for one in verdicts)


def rows_of_the_next_page(chosen: Tensor, page: int) -> Tensor:
    return pages.rows_of(chosen, page) + 1


def the_mean_head(query: Tensor, keys: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    heads = [query[:, head : head + 1] for head in range(query.shape[1])]
    half = len(heads) // keys.shape[1]
    each = [
        pages.row_scores(one, keys[:, at // half : at // half + 1], mask, scale)
        for at, one in enumerate(heads)
    ]
    return torch.stack(each).mean(0)


def without_the_mask(there: Tensor, rows: Tensor, mask: Tensor | None) -> Tensor:
    return pages.narrowed(there, rows, None)


def all_rows_but_the_last(rows: Tensor, past: Tensor) -> Tensor:
    return rows < past.shape[2] - 1


def without_the_recent(scores: Tensor, asked: Pages) -> Tensor:
    last = torch.arange(scores.shape[1]) >= scores.shape[1] - asked.page
    return pages.chosen_pages(torch.where(last, 0.0, scores), Pages(asked.page, asked.pages, 1))


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("rows_of", rows_of_the_next_page),
        ("row_scores", the_mean_head),
        ("narrowed", without_the_mask),
        ("present", all_rows_but_the_last),
        ("chosen_pages", without_the_recent),
    ],
)
def test_a_mistake_fails(
    full: Step, name: str, mistake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparsify, name, mistake)
    failed = [one for one in judged(full) if not one.passed]
    assert failed and all(one.message for one in failed)
