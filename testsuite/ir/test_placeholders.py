from __future__ import annotations

import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.zoo import llava
from torch import Tensor, nn

from tokopt.ir.facts import analyse
from tokopt.ir.placeholders import Placeholders, find_placeholders
from tokopt.passes.normalize import normalize


@pytest.mark.parametrize("name", ["llava", "llava_dynamic", "llava_explicit"])
def test_the_merge_of_a_vlm_tells_which_ids_hold_the_place_of_visual_rows(name: str) -> None:
    wanted = Placeholders("input_ids", llava.IMAGE_TOKEN, llava.VISUAL)
    assert find_placeholders(analysed(name).facts) == (wanted,)


@pytest.mark.parametrize("name", ["handvit", "dino", "random1"])
def test_a_model_without_a_merge_asks_nothing(name: str) -> None:
    assert find_placeholders(analysed(name).facts) == ()


class Masked(nn.Module):
    """A LLaVA whose mask is made of its input in another way."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.model, self.shared = llava.model(attention="sdpa", seed=0, layers=1), shared

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        features = self.model.model.get_image_features(pixel_values).pooler_output[0]
        ids = input_ids.clamp(max=llava.IMAGE_TOKEN - 1)
        embeds = self.model.get_input_embeddings()(ids)
        mask = input_ids >= llava.IMAGE_TOKEN
        if self.shared:  # the first item's placeholders stand for everybody's
            mask = (input_ids[:1] == llava.IMAGE_TOKEN).expand(input_ids.shape)
        embeds = embeds.masked_scatter(mask.unsqueeze(-1), features)
        return self.model(inputs_embeds=embeds, use_cache=False).logits


@pytest.mark.parametrize("shared", [True, False])
def test_a_mask_made_in_another_way_asks_nothing(shared: bool) -> None:
    given = llava.inputs(1, llava.VISUAL + 5, seed=0)
    with torch.no_grad():
        exported = torch.export.export(Masked(shared=shared).eval(), given, strict=False)
    facts = analyse(normalize(exported))
    assert facts.consumer.merge is not None
    assert find_placeholders(facts) == ()
