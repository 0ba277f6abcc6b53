"""How LLaVA is captured: pixels and ids to logits, features entering as one tensor if batched."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


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
        if not self.free_batch:
            return self.model(
                pixel_values=pixel_values, input_ids=input_ids, use_cache=False
            ).logits
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        image = BaseModelOutputWithPooling(pooler_output=[self._features(pixel_values)])
        return self.model(
            input_ids=input_ids, mm_encoder_outputs={"image": image}, use_cache=False
        ).logits

    def _features(self, pixel_values: Tensor) -> Tensor:
        """Projected features ``[B*N, H]`` of the configured tower layers."""
        core, config = self.model.model, self.model.config
        states = core.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        if config.vision_feature_select_strategy == "default":
            chosen = [state[:, 1:] for state in chosen]
        features = chosen[0] if len(chosen) == 1 else _join(chosen)
        return core.multi_modal_projector(features).flatten(0, 1)


def _join(states: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(states, dim=-1)
