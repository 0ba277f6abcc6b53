import pytest
import torch
from testsuite.zoo import qwen2_5_vl

from tokopt.cli.capture_logits import PlainLogits, PromptLogits, prepare
from tokopt.cli.capture_packed import packed
from tokopt.cli.capture_request import Request

GRID = (1, 8, 12)


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        ({}, "448x448"),
        ({"max_pixels": 100 * 100}, "96x96"),
        ({"size": {"longest_edge": 70 * 70, "shortest_edge": 4}}, "64x64"),
        ({"min_pixels": 500 * 500}, "512x512"),
        ({"size": {"longest_edge": 10**7, "shortest_edge": 460 * 460}}, "464x464"),
    ],
)
def test_the_default_image_is_one_the_processor_can_produce(
    processor: dict[str, object], size: str
) -> None:
    model = qwen2_5_vl.model(attention="sdpa", seed=0, vision_layers=1, layers=1)
    assert prepare(packed, model, Request(), processor).facts["image_size"] == size


def test_constants_and_given_positions_give_the_logits_the_library_gives() -> None:
    model = qwen2_5_vl.model(attention="sdpa", seed=0, vision_layers=2, layers=2)
    form = qwen2_5_vl.form(model, GRID)
    pixels, ids, positions = qwen2_5_vl.inputs(model, GRID, 10, seed=1)
    with torch.no_grad():
        want = PlainLogits(model, form, qwen2_5_vl.NAMES)(pixels, ids, positions)
        got = PromptLogits(model, form, qwen2_5_vl.NAMES)(pixels, ids, positions)
        shifted = PromptLogits(model, form, qwen2_5_vl.NAMES)(pixels, ids, positions.flip(0))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert float((shifted - want).abs().max()) > 1e-2  # the positions are read


def test_masks_of_the_decoder_are_not_baked_into_the_graph() -> None:
    model = qwen2_5_vl.model(attention="sdpa", seed=0, vision_layers=2, layers=2)
    case = prepare(packed, model, Request((64, 96), 40), {})
    lifted = [t.shape for t in case.trace().constants.values() if isinstance(t, torch.Tensor)]
    assert lifted and not any(shape[-2:] == (40, 40) for shape in lifted)
