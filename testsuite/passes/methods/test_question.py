import dataclasses

import torch
from testsuite.passes.methods.drawn_taps import drawn_taps

from tokopt.passes.methods.question import question_rows


def test_the_question_is_the_text_behind_the_image() -> None:
    taps = drawn_taps("decoder", rows=14, layers=0)
    assert [row.nonzero()[:, 0].tolist() for row in question_rows(taps)] == [
        [9, 10, 11, 12, 13],
        [10, 11, 12, 13],
    ]


def test_where_the_image_is_last_all_text_is_the_question() -> None:
    mask = torch.tensor([[False, False, True, True], [False, True, True, False]])
    taps = dataclasses.replace(drawn_taps("decoder", layers=0), candidates=mask)
    assert question_rows(taps).tolist() == [
        [True, True, False, False],
        [False, False, False, True],
    ]


def test_padding_behind_the_prompt_is_no_question_where_its_end_is_known() -> None:
    taps = drawn_taps("decoder", rows=14, layers=1)
    layer = dataclasses.replace(taps.layers[0], last=torch.tensor([11, 13]))
    known = question_rows(dataclasses.replace(taps, layers=[layer]))
    assert [row.nonzero()[:, 0].tolist() for row in known] == [[9, 10, 11], [10, 11, 12, 13]]
