"""How a model that reads a prompt is captured: pixels and ids to the logits of every position.

One wrapper for all forms of visual input: the form says what the pixels are, here they meet the
text.  Features enter through the library's own ``mm_encoder_outputs``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from tokopt.cli.capture import Capture, Inputs
from tokopt.cli.capture_call import NamedCall
from tokopt.cli.capture_prompt import least_prompt, prompt_length, sample_mask, sample_prompt
from tokopt.cli.capture_request import Request, noise
from tokopt.cli.capture_tracing import dense_injection, index_masks
from tokopt.cli.capture_visual import Form, Visual
from tokopt.ir.errors import InputError, UnsupportedError


class PromptLogits(NamedCall):
    """``(pixels, input_ids [B,S], ...) -> logits [B,S,V]``, no cache; the module that is traced."""

    def __init__(self, model: Any, visual: Visual, names: Sequence[str]) -> None:
        super().__init__(model, names)
        self.visual = visual

    def call(self, given: dict[str, Any]) -> Tensor:
        """Return the logits of every position."""
        logits: Tensor = self.output(given, use_cache=False).logits
        return logits

    def output(self, given: dict[str, Any], **settings: Any) -> Any:
        """Return what the library returns, with its ``settings``."""
        visual, ids = self.visual, given["input_ids"]
        if visual.encode is None:
            batch = ids.shape[0]
            given |= {k: v.expand(batch, *v.shape[1:]) for k, v in visual.constants.items()}
        else:
            pixels = given.pop(visual.name)
            features = visual.encode(self.model, pixels, visual.constants)
            given |= {visual.name: None, "mm_encoder_outputs": {visual.kind: features}}
        with index_masks(), dense_injection(self.model):
            return self.model(**given, **visual.types(ids), **settings)


class PlainLogits(PromptLogits):
    """The model called as its library means it to be; positions it finds by itself."""

    def call(self, given: dict[str, Any]) -> Tensor:
        """Return the logits of every position; inputs the library can derive are not read."""
        visual, ids = self.visual, given["input_ids"]
        for name, extra in visual.extras.items():
            if extra.derived:
                del given[name]
        batch = 1 if visual.alone else ids.shape[0]
        plain = {k: v.as_subclass(Tensor) for k, v in visual.constants.items()}
        given |= {k: torch.cat([v] * batch) for k, v in plain.items()}
        return self.model(**given, **visual.types(ids), use_cache=False).logits


def prepare(form: Form, model: Any, request: Request, processor: Mapping[str, Any]) -> Capture:
    """Build the samples of ``model``, whose visual input has ``form``."""
    visual = form(model, request, processor)
    if request.frames is not None and visual.kind != "video":
        raise InputError(f"{model.config.model_type} reads no video", expected="no --frames")
    if request.free_batch and visual.alone:
        raise UnsupportedError(
            f"the batch of {model.config.model_type} cannot be left free: {visual.alone}",
            hint="--dynamic length",
        )
    text = model.config.get_text_config()
    least = least_prompt(visual.placeholders, visual.images)
    length = prompt_length(
        request, visual.placeholders, text.max_position_embeddings, visual.images
    )
    names = [visual.name, "input_ids", *visual.extras]
    names += ["attention_mask"] if request.padding else []

    def sample(batch: int, rows: int, seed: int) -> Inputs:
        mask = sample_mask(batch, rows, least, seed) if request.padding else None
        ids = sample_prompt(
            batch,
            rows,
            visual=visual.placeholders,
            token=visual.token,
            vocabulary=text.vocab_size,
            reserved=special_tokens(model.config),
            images=visual.images,
            mask=mask,
            seed=seed,
        )
        pixels = noise(*visual.shape(batch), seed=seed, dtype=model.dtype)
        extras = [extra.sample(ids, mask) for extra in visual.extras.values()]
        return pixels, ids, *extras, *([] if mask is None else [mask])

    sizes = request.sizes(length)
    samples = [sample(batch, rows, seed) for seed, (batch, rows) in enumerate(sizes)]
    facts: dict[str, int | str] = {
        "image_size": "x".join(map(str, visual.size)),
        "visual_tokens": visual.count,
        "prompt_length": length,
    }
    return Capture(
        PromptLogits(model, visual, names).eval(),
        PlainLogits(model, visual, names).eval(),
        samples[0],
        tuple(samples[1:]),
        _dynamic_shapes(visual, request, least),
        facts,
        padding=names.index("attention_mask") if request.padding else None,
    )


def special_tokens(config: Any) -> set[int]:
    """Return the ids that the model's config gives a meaning, placeholders among them."""
    names = [n for n in config.to_dict() if n.endswith(("_token_id", "_token_index"))]
    values = [getattr(config, name) for name in names]
    return {value for value in values if isinstance(value, int)}


def _dynamic_shapes(visual: Visual, request: Request, least: int) -> tuple[Any, ...] | None:
    if not request.dynamic:
        return None
    batch, length = Dim("batch", min=1), Dim("length", min=least)

    def dims(at_batch: int, at_length: int) -> dict[int, Any]:
        free = {at_batch: batch} if request.free_batch else {}
        return {**free, **({at_length: length} if request.free_length else {})}

    pixels: dict[int, Any] = {}
    if request.free_batch:
        pixels = {0: batch if visual.stacked or visual.item[0] == 1 else visual.item[0] * batch}
    extras = [dims(extra.batch, extra.length) for extra in visual.extras.values()]
    return (pixels, dims(0, 1), *extras, *([dims(0, 1)] if request.padding else []))
