from pathlib import Path

import pytest
import torch
import transformers
from testsuite.zoo import llava
from testsuite.zoo.weights import randomise

from tokopt.cli.capture_images import images, placeholder
from tokopt.cli.capture_logits import prepare
from tokopt.cli.capture_request import Request
from tokopt.cli.capture_tiles import images_or_sized
from tokopt.ir.errors import InputError
from tokopt.ir.load import load

FREE = Request(dynamic=frozenset({"batch"}))


@pytest.mark.parametrize("layers", [-2, [-2, 1]])
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_features_of_a_free_batch_as_one_tensor_give_the_same_logits(
    layers: int | list[int], strategy: str
) -> None:
    config = llava.config(attention="sdpa", layers=2)
    config.vision_feature_layer, config.vision_feature_select_strategy = layers, strategy
    model = randomise(transformers.LlavaForConditionalGeneration(config).eval(), 0)
    case = prepare(images, model, FREE, {})
    assert case.facts["visual_tokens"] == llava.VISUAL + (strategy == "full")
    assert {len(inputs[0]) for inputs in (case.inputs, *case.others)} == {1, 2, 3}
    assert max(case.differences(case.trace()).values()) <= 1e-5


@pytest.mark.parametrize(
    "tower",
    [
        transformers.SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            vision_use_head=False,
        ),
        transformers.PixtralVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
    ],
    ids=lambda tower: tower.model_type,
)
def test_a_tower_without_a_class_token_is_captured_too(
    tower: transformers.PretrainedConfig,
) -> None:
    config = transformers.LlavaConfig(
        vision_config=tower,
        text_config=llava.config(attention="sdpa", layers=1).text_config,
        image_token_index=llava.IMAGE_TOKEN,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    model = randomise(transformers.LlavaForConditionalGeneration(config).eval(), 0)
    case = prepare(images_or_sized, model, Request(), {})
    assert case.facts["visual_tokens"] == 16
    assert max(case.differences(case.trace()).values()) <= 1e-5


def test_a_prompt_of_three_images_is_three_runs_and_their_pixels(tmp_path: Path) -> None:
    model = llava.model(attention="sdpa", seed=0, layers=1)
    case = prepare(images, model, Request(images=3, dynamic=frozenset({"batch"})), {})
    pixels, ids = case.inputs
    assert len(pixels) == 6 and case.facts["visual_tokens"] == 3 * llava.VISUAL
    starts = (ids == llava.IMAGE_TOKEN).int().diff(dim=1).clamp(min=0).sum(1)
    assert starts.tolist() == [3, 3]
    exported = case.trace()
    assert max(case.differences(exported).values()) <= 1e-5
    torch.export.save(exported, tmp_path / "three.pt2")
    pixels, ids = (
        node.meta["val"].shape[0]
        for node in load(tmp_path / "three.pt2").main.graph.nodes
        if node.name in ("pixel_values", "input_ids")
    )
    assert pixels == 3 * ids


def test_a_config_without_a_placeholder_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no image token"):
        placeholder(transformers.ViTConfig())


def test_what_padding_hides_does_not_change_the_logits() -> None:
    model = llava.model(attention="sdpa", seed=0, layers=2)
    case = prepare(images, model, Request(prompt_length=50, padding=True), {})
    exported = case.trace().module()
    pixels, ids, mask = case.inputs
    assert not bool(mask.all())
    other = torch.where(mask.bool(), ids, (ids + 1) % llava.TEXT_VOCABULARY)
    kept = mask.bool()
    torch.testing.assert_close(
        exported(pixels, other, mask)[kept], exported(pixels, ids, mask)[kept]
    )
    seen = exported(pixels, ids, torch.ones_like(mask))[kept]
    assert float((seen - exported(pixels, ids, mask)[kept]).abs().max()) > 1e-2
