import pytest
import torch

from tokopt.cli.capture_prompt import prompt_length, sample_prompt
from tokopt.cli.capture_request import Request
from tokopt.ir.errors import InputError


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("length", [11, 12, 30])
def test_every_item_has_one_run_of_placeholders_between_text(length: int, seed: int) -> None:
    ids = sample_prompt(4, length, visual=9, token=0, vocabulary=6, reserved=(1, 2), seed=seed)
    for row in ids:
        places = (row == 0).nonzero().flatten()
        assert torch.equal(places, torch.arange(9) + places[0])
        assert places[0] >= 1 and places[-1] <= length - 2
        assert set(row.tolist()) <= {0, 3, 4, 5}


def test_items_have_the_image_in_different_places() -> None:
    ids = sample_prompt(3, 40, visual=9, token=8, vocabulary=8, seed=0)
    assert len({int((row == 8).int().argmax()) for row in ids}) == 3


def test_the_default_prompt_has_64_text_tokens_but_fits_the_model() -> None:
    assert prompt_length(Request(), 36, 1000) == 100
    assert prompt_length(Request(), 36, 50) == 50


@pytest.mark.parametrize("length", [-1, 0, 37, 1001])
def test_a_length_without_room_for_image_and_text_is_refused(length: int) -> None:
    with pytest.raises(InputError, match=f"{length} tokens"):
        prompt_length(Request(prompt_length=length), 36, 1000)
