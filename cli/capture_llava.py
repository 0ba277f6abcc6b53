"""How LLaVA is captured: pixels and ids to logits, features entering as one tensor if batched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from tokopt.cli.capture import Capture
from tokopt.cli.capture_prompt import prompt_length, sample_prompt
from tokopt.cli.capture_request import Request, noise
from tokopt.ir.errors import InputError, UnsupportedError

TOWERS = ("clip_vision_model", "siglip_vision_model")


class LlavaLogits(nn.Module):
    """``(pixel_values [B,3,h,w], input_ids [B,S]) -> logits [B,S,V]`` of ``model``, no cache.

    The library turns features into ``list(features)``, one per item, which fixes the batch size.
    With ``free_batch`` they are computed here and handed over as one tensor of ``B*N`` rows.
    """

    def __init__(self, model: Any, *, free_batch: bool = False) -> None:
        super().__init__()
        self.model, self.free_batch = model, free_batch

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """Return the logits of every position."""
        given: dict[str, Any] = {"pixel_values": pixel_values}
        if self.free_batch:
            from transformers.modeling_outputs import BaseModelOutputWithPooling

            features: Any = [self._features(pixel_values)]
            given = {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(None, features)}}
        return self.model(input_ids=input_ids, use_cache=False, **given).logits

    def _features(self, pixel_values: Tensor) -> Tensor:
        """Projected features ``[B*N, H]`` of the configured tower layers."""
        core, config = self.model.model, self.model.config
        states = core.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        if config.vision_feature_select_strategy == "default":
            chosen = [state[:, 1:] for state in chosen]
        features = chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=-1)
        return core.multi_modal_projector(features).flatten(0, 1)


def prepare(model: Any, request: Request, processor: Mapping[str, Any]) -> Capture:
    """Build samples for ``model``; its tower fixes the image size (``processor`` is not needed)."""
    tower, text = model.config.vision_config, model.config.text_config
    if tower.model_type not in TOWERS:
        raise UnsupportedError(
            f"LLaVA with the tower {tower.model_type} cannot be exported",
            expected=" or ".join(TOWERS),
        )
    size = tower.image_size
    if request.image_size not in (None, (size, size)):
        raise InputError(
            "the vision tower has position embeddings for one image size",
            expected=f"--image-size {size}x{size}",
        )

    def pixels(batch: int, seed: int) -> Tensor:
        return noise(batch, tower.num_channels, size, size, seed=seed, dtype=model.dtype)

    with torch.no_grad():
        features = model.model.get_image_features(pixels(1, 0), return_dict=True).pooler_output
    visual, token = features[0].shape[0], model.config.image_token_id
    length = prompt_length(request, visual, text.max_position_embeddings)
    samples = [
        (
            pixels(batch, i),
            sample_prompt(
                batch, rows, visual=visual, token=token, vocabulary=text.vocab_size, seed=i
            ),
        )
        for i, (batch, rows) in enumerate(request.sizes(length))
    ]
    batch_dim = {0: Dim("batch", min=1)} if request.free_batch else {}
    row_dim = {1: Dim("length", min=visual + 2)} if request.free_length else {}
    shapes = (batch_dim, {**batch_dim, **row_dim}) if request.dynamic else None
    facts = {"image_size": f"{size}x{size}", "visual_tokens": visual, "prompt_length": length}
    module = LlavaLogits(model, free_batch=request.free_batch)
    return Capture(
        module.eval(), LlavaLogits(model).eval(), samples[0], tuple(samples[1:]), shapes, facts
    )
