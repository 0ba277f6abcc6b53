"""The small LLaVA: its sizes, and its tower with some patches dropped.

transformers' own LlavaForConditionalGeneration: a CLIP tower with CLS, the two-layer projector, a
Llama decoder with grouped key-value heads.  Random weights; build.py loads the trained ones.
"""

import torch
from testsuite.models.canvas import PATCH, SIDE, TOKENS
from testsuite.models.digits import BOS, IMAGE, WORDS
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

WIDTH = 128


def llava() -> LlavaForConditionalGeneration:
    """The model with fresh weights, in eval mode, fp32, sdpa attention."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=BOS,
        pad_token_id=BOS,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    config._attn_implementation = "sdpa"
    model = LlavaForConditionalGeneration(config)
    model.train(False)
    return model


def visual_rows(
    model: LlavaForConditionalGeneration,
    pixel_values: torch.Tensor,
    index: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The projected patches [B, TOKENS, WIDTH] and the tower's CLS output [B, WIDTH].

    With ``index`` [B, k] the tower sees CLS and these patches only (patch dropout in training); the
    rows of the others are zero.
    """
    tower = model.model.vision_tower
    if index is None:
        seen = tower(pixel_values)
        hidden, cls = seen.last_hidden_state[:, 1:], seen.pooler_output
        return model.model.multi_modal_projector(hidden), cls
    place = index[..., None].expand(-1, -1, WIDTH)
    embedded = tower.embeddings(pixel_values)
    some = torch.cat([embedded[:, :1], embedded[:, 1:].gather(1, place)], 1)
    hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(some)).last_hidden_state
    rows = model.model.multi_modal_projector(hidden[:, 1:])
    empty = rows.new_zeros(len(rows), TOKENS, WIDTH)
    return empty.scatter(1, place, rows), tower.post_layernorm(hidden[:, 0])


def position_ids(place: torch.Tensor) -> torch.Tensor:
    """Positions of places in the prompt: the same."""
    return place
