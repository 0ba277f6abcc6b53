import pytest
import torch

from tokopt.cli.capture_prompt import prompt_length, sample_mask, sample_prompt
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


@pytest.mark.parametrize("images", [2, 3])
@pytest.mark.parametrize("spare", [0, 1, 9])
def test_images_are_runs_of_equal_length_with_text_around_each(images: int, spare: int) -> None:
    length = 4 * images + images + 1 + spare
    ids = sample_prompt(
        3, length, visual=4 * images, token=0, vocabulary=6, images=images, seed=spare
    )
    for row in ids:
        text = "".join("v" if i == 0 else "t" for i in row.tolist())
        assert [len(run) for run in text.split("t") if run] == [4] * images
        assert text[0] == text[-1] == "t"


def test_rows_are_padded_left_right_and_not_at_all_and_images_stay_outside() -> None:
    mask = sample_mask(3, 30, 11, seed=0)
    assert mask.tolist() == [[0] * 3 + [1] * 27, [1] * 26 + [0] * 4, [1] * 30]
    ids = sample_prompt(3, 30, visual=9, token=0, vocabulary=6, mask=mask, seed=4)
    inside = mask.bool() & (ids == 0)
    assert inside.sum(1).tolist() == (ids == 0).sum(1).tolist() == [9, 9, 9]


def test_padding_leaves_the_shortest_prompt_whole() -> None:
    assert sample_mask(2, 12, 11, seed=0).sum(1).tolist() == [11, 11]
    assert sample_mask(2, 11, 11, seed=0).sum(1).tolist() == [11, 11]


def test_a_prompt_needs_text_between_images() -> None:
    assert prompt_length(Request(prompt_length=21), 18, 99, 2) == 21
    with pytest.raises(InputError, match="20 tokens"):
        prompt_length(Request(prompt_length=20), 18, 99, 2)
