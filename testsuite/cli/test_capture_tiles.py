import pytest
import torch
from testsuite.zoo import llava_next, llava_onevision, mistral3

from tokopt.cli.capture_logits import prepare
from tokopt.cli.capture_request import Request
from tokopt.cli.capture_tiles import sized, tiles
from tokopt.ir.errors import InputError, UnsupportedError


@pytest.mark.parametrize(
    ("size", "parts", "rows"),
    [
        ((30, 90), 3, 36 + 4 * 13),  # 1x2 tiles, 4 of 6 rows of patches, a newline after each row
        ((90, 30), 3, 36 + 12 * 5),  # 2x1 tiles, 4 of 6 columns
        ((80, 80), 5, 36 + 12 * 13),  # 2x2 tiles
    ],
)
def test_the_size_of_the_photo_decides_tiles_and_rows(
    size: tuple[int, int], parts: int, rows: int
) -> None:
    visual = tiles(llava_next.model("sdpa", 0), Request(size), {})
    assert visual.item == (1, parts, 3, 48, 48) and visual.count == rows


def test_without_a_size_the_widest_grid_is_taken() -> None:
    assert tiles(llava_next.model("sdpa", 0), Request(), {}).size == (48, 96)


def test_several_photos_are_thumbnails_where_the_model_is_told_how_many_there_are() -> None:
    two = Request((30, 90), images=2)
    assert tiles(llava_next.model("sdpa", 0), two, {}).item[:2] == (2, 3)
    visual = tiles(llava_onevision.model("sdpa", 0), two, {})
    assert visual.item[:2] == (2, 1) and visual.count == 2 * (36 + 1)


def test_a_free_batch_of_sized_images_is_unsupported() -> None:
    free = Request((48, 32), dynamic=frozenset({"batch"}))
    with pytest.raises(UnsupportedError, match="sizes of its images are constants"):
        prepare(sized, mistral3.model("sdpa", 0), free, {})


def test_an_image_that_is_no_whole_number_of_merged_patches_is_refused() -> None:
    with pytest.raises(InputError, match="multiples of 16"):
        sized(mistral3.model("sdpa", 0), Request((40, 32)), {})


def test_sizes_are_constants_of_the_graph_and_no_input() -> None:
    case = prepare(sized, mistral3.model("sdpa", 0), mistral3.REQUEST, {})
    exported = case.trace()
    assert list(exported.graph_signature.user_inputs) == ["pixel_values", "input_ids"]
    shapes = [getattr(node.meta.get("val"), "shape", ()) for node in exported.graph.nodes]
    assert not any(isinstance(size, torch.SymInt) for shape in shapes for size in shape)
