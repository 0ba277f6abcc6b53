import pytest
import torch
from testsuite.zoo import mllama
from testsuite.zoo.tiny import IMAGE

from tokopt.cli.capture_cross_attention import cross_attended
from tokopt.cli.capture_request import Request
from tokopt.ir.errors import InputError


def test_a_token_sees_the_used_tiles_of_the_last_image_in_front_of_it() -> None:
    visual = cross_attended(mllama.model("sdpa", 0), Request((48, 48), images=2), {})
    ids = torch.tensor([[5, IMAGE, 6, 7, IMAGE, 8]])
    seen = visual.extras["cross_attention_mask"].sample(ids, None)
    first, second, none = [[1, 0], [0, 0]], [[0, 0], [1, 0]], [[0, 0], [0, 0]]
    assert seen[0].tolist() == [none, first, first, first, second, second]


def test_the_default_arrangement_has_the_most_tiles() -> None:
    visual = cross_attended(mllama.model("sdpa", 0), Request(), {})
    assert visual.size == (96, 48) and visual.count == 2 * 37 and visual.placeholders == 1


@pytest.mark.parametrize("size", [(96, 96), (48, 40), (24, 48)])
def test_a_size_without_an_arrangement_names_those_there_are(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="48x48 or 48x96 or 96x48"):
        cross_attended(mllama.model("sdpa", 0), Request(size), {})
