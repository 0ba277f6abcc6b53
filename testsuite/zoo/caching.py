"""Transformers' models as serving stacks split them: ``prefill`` with its cache, and ``decode``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import DynamicCache

from tokopt.cli.capture_call import NamedCall
from tokopt.cli.capture_families import FAMILIES
from tokopt.cli.capture_logits import PromptLogits
from tokopt.cli.capture_request import Request

LONGEST = 200


class Prefill(NamedCall):
    """``(pixels, input_ids, ...) -> logits [B,S,V]`` and each layer's keys and values."""

    def __init__(self, logits: PromptLogits) -> None:
        super().__init__(logits.model, logits.names)
        self.logits = logits

    def call(self, given: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return the logits of every position and the cache."""
        cache = DynamicCache()
        plain = self.logits.model.forward

        def forward(**named: Any) -> Any:
            return plain(**{**named, "use_cache": True, "past_key_values": cache})

        self.logits.model.forward = forward
        try:
            logits = self.logits.call(given)
        finally:
            self.logits.model.forward = plain
        return (logits, *_flat(cache))


class Decode(nn.Module):
    """``token [B,1], position, cache -> logits [B,1,V]`` and the cache, whole or its new rows."""

    def __init__(self, model: Any, whole: bool) -> None:
        super().__init__()
        self.model, self.whole = model, whole

    def forward(self, token: Tensor, position: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        """Return what one step makes."""
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        out = self.model(
            input_ids=token, position_ids=position, past_key_values=cache, use_cache=True
        )
        rows = _flat(out.past_key_values)
        return (out.logits, *(rows if self.whole else [one[:, :, -1:] for one in rows]))


def prefill_and_decode(model: Any, request: Request, *, whole: bool) -> dict[str, ExportedProgram]:
    """Export both for one prompt at a time, its length and the cache's free."""
    capture = FAMILIES[model.config.model_type].prepare(model, request, {})
    prefill = Prefill(capture.module).eval()
    with torch.no_grad():
        cache = [rows.contiguous() for rows in prefill(*capture.inputs)[1:]]
        axes = 3 if len(capture.inputs) > 2 else None
        token = torch.ones(1, 1, dtype=torch.int64)
        position = token * capture.inputs[1].shape[1]
        position = position if axes is None else position.expand(axes, 1, 1).contiguous()
        sized = (None, None, [{2: Dim.AUTO(min=2, max=LONGEST)} for _ in cache])
        return {
            "prefill": torch.export.export(
                prefill, capture.inputs, dynamic_shapes=capture.dynamic_shapes, strict=False
            ),
            "decode": torch.export.export(
                Decode(model, whole).eval(),
                (token, position, cache),
                dynamic_shapes=sized,
                strict=False,
            ),
        }


def _flat(cache: Any) -> list[Tensor]:
    return [rows for layer in cache.layers for rows in (layer.keys, layer.values)]
