"""A tiny LLaVA (Hugging Face's class, random weights) that drops half of its visual features.

Batch and prompt length are dynamic; the number of image tokens per item is fixed.
"""

from __future__ import annotations

import torch
from testsuite.targets.programs import gather, restore, select, without_asserts
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

PATCHES, IMAGE_TOKEN = 16, 199


class PrunedLlava(nn.Module):
    def __init__(self, keep: int = 8) -> None:
        super().__init__()
        vision = CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            image_size=32, patch_size=8,
        )  # fmt: skip
        text = LlamaConfig(
            vocab_size=200, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        )  # fmt: skip
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)
        self.model, self.keep = LlavaForConditionalGeneration(config), keep

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        vision = self.model.model.vision_tower(pixel_values, output_hidden_states=True)
        features = self.model.model.multi_modal_projector(vision.hidden_states[-2][:, 1:])
        kept = select(features.norm(dim=-1), self.keep)
        features = restore(gather(features, kept), kept, PATCHES)
        embeds = self.model.get_input_embeddings()(input_ids)
        place = (input_ids == IMAGE_TOKEN).unsqueeze(-1)
        embeds = embeds.masked_scatter(place, features.flatten(0, 1))
        return self.model(
            inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False
        ).logits


def inputs(batch: int, text: int, padded: int = 0) -> dict[str, Tensor]:
    """``text`` prompt tokens around the image; the first ``padded`` of item 0 are masked."""
    generator = torch.Generator().manual_seed(batch * 100 + text)
    ids = torch.randint(0, 190, (batch, text + PATCHES), generator=generator)
    ids[:, 2 : 2 + PATCHES] = IMAGE_TOKEN
    mask = torch.ones_like(ids)
    mask[0, :padded] = 0
    pixels = torch.randn(batch, 3, 32, 32, generator=generator)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}


def pruned_llava() -> ExportedProgram:
    torch.manual_seed(0)
    model = PrunedLlava().eval()
    batch, length = Dim("n", min=1, max=16), Dim("length", min=18, max=128)
    shapes = {
        "pixel_values": {0: batch},
        "input_ids": {0: batch, 1: length},
        "attention_mask": {0: batch, 1: length},
    }
    with torch.no_grad():
        exported = export(model, (), inputs(3, 9), dynamic_shapes=shapes)
    return without_asserts(exported).run_decompositions({})
