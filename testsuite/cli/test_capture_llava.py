import pytest
import torch
import transformers
from testsuite.zoo import llava
from testsuite.zoo.weights import randomise

from tokopt.cli.capture_llava import LlavaLogits, prepare
from tokopt.cli.capture_request import Request
from tokopt.ir.errors import UnsupportedError


@pytest.mark.parametrize("layers", [-2, 1, [-2, 1]])
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_features_as_one_tensor_give_the_same_logits(
    layers: int | list[int], strategy: str
) -> None:
    config = llava.config(attention="sdpa", layers=2)
    config.vision_feature_layer, config.vision_feature_select_strategy = layers, strategy
    model = randomise(transformers.LlavaForConditionalGeneration(config).eval(), 0)
    with torch.no_grad():
        case = prepare(model, Request(dynamic=frozenset({"batch"})), {})
        assert case.facts["visual_tokens"] == llava.VISUAL + (strategy == "full")
        for inputs in (case.inputs, *case.others):
            want = model(pixel_values=inputs[0], input_ids=inputs[1], use_cache=False).logits
            got = LlavaLogits(model, free_batch=True)(*inputs)
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_a_siglip_tower_is_captured_too() -> None:
    tower = transformers.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        vision_use_head=False,
    )
    config = transformers.LlavaConfig(
        vision_config=tower,
        text_config=llava.config(attention="sdpa", layers=1).text_config,
        image_token_index=llava.IMAGE_TOKEN,
        vision_feature_select_strategy="full",
    )
    case = prepare(transformers.LlavaForConditionalGeneration(config).eval(), Request(), {})
    assert max(case.differences(case.trace()).values()) <= 1e-5
    assert case.facts["visual_tokens"] == 16


def test_another_tower_is_unsupported() -> None:
    model = llava.model(attention="sdpa", seed=0, layers=1)
    model.config.vision_config.model_type = "pixtral"
    with pytest.raises(UnsupportedError, match="pixtral"):
        prepare(model, Request(), {})
