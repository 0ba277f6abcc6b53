from __future__ import annotations

import pytest
import torch

from tokopt.ir.errors import InputError
from tokopt.ir.placeholders import Placeholders
from tokopt.targets.placeholder_check import check_placeholders

WANTED = [Placeholders("ids", 9, 2), Placeholders("ids", 8, 1)]


def test_every_item_must_have_as_many_as_are_wanted_wherever_they_are() -> None:
    check_placeholders({"ids": torch.tensor([[9, 1, 9, 8], [8, 9, 9, 2]])}, WANTED)
    check_placeholders({"ids": torch.tensor([9, 1, 9, 8])}, WANTED)
    check_placeholders({"ids": torch.tensor([[1, 2]])}, [])


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([[9, 9, 8], [9, 1, 8]], "item 1 has 1 image placeholders, the program expects 2"),
        ([[9, 9, 9, 8]], "item 0 has 3 image placeholders, the program expects 2"),
        ([[9, 9, 8], [9, 9, 1]], "item 1 has 0 image placeholders, the program expects 1"),
        ([9, 8, 1], "item 0 has 1 image placeholders, the program expects 2"),
    ],
)
def test_the_first_item_that_does_not_fit_is_named(ids: list[int], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        check_placeholders({"ids": torch.tensor(ids)}, WANTED)
    assert error.value.where == "input 'ids'" and "elements equal to" in str(error.value)


def test_a_prompt_that_ends_with_an_image_may_not_be_padded_behind_it() -> None:
    """The last real row is the one the answer follows from; only the last of all is protected."""
    wanted = [Placeholders("ids", 9, 2, "mask")]
    ids = torch.tensor([[1, 2, 9, 9], [9, 9, 1, 0]])

    def check(*mask: list[int]) -> None:
        check_placeholders({"ids": ids, "mask": torch.tensor(mask)}, wanted)

    check([1, 1, 1, 1], [1, 1, 1, 0])
    check([0, 1, 1, 1], [1, 1, 1, 1])  # padded on the left, or by nothing that a mask would tell
    check([0, 0, 0, 0], [1, 1, 1, 0])
    with pytest.raises(InputError, match="item 1 ends with an image placeholder and is padded"):
        check([1, 1, 1, 1], [1, 1, 0, 0])
