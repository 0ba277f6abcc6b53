import dataclasses

import pytest
import torch
from testsuite.passes.methods.drawn_taps import drawn_taps

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.methods.method import Taps
from tokopt.passes.methods.question import question_rows


def places(taps: Taps) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in question_rows(taps, "mmtok")]


def test_the_question_is_the_text_behind_the_image() -> None:
    taps = drawn_taps("decoder", rows=14, layers=0)
    assert places(taps) == [[9, 10, 11, 12, 13], [10, 11, 12, 13]]


def test_where_the_image_is_last_all_text_is_the_question() -> None:
    mask = torch.tensor([[False, False, True, True], [False, True, True, False]])
    taps = dataclasses.replace(drawn_taps("decoder", layers=0), candidates=mask, text=~mask)
    assert places(taps) == [[0, 1], [3]]


def test_padding_is_no_question() -> None:
    taps = drawn_taps("decoder", rows=14, layers=0)
    text = ~taps.candidates
    text[0, 12:] = False
    assert places(dataclasses.replace(taps, text=text)) == [[9, 10, 11], [10, 11, 12, 13]]


def test_a_stack_without_prompt_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="mmtok compares tokens with the prompt"):
        question_rows(drawn_taps("vision"), "mmtok")
