"""A tiny LLaVA that takes an attention mask, exported with free batch and prompt length."""

from __future__ import annotations

import functools

import torch
from testsuite.zoo import llava
from torch import Tensor
from torch.export import Dim, ExportedProgram

from tokopt.cli.capture_images import images
from tokopt.cli.capture_logits import PromptLogits
from tokopt.cli.capture_request import Request

VISUAL, IMAGE_TOKEN = llava.VISUAL, llava.IMAGE_TOKEN
Inputs = dict[str, Tensor]


def items(seed: int = 0) -> list[Inputs]:
    """Return three prompts of different lengths, the image at different places, one batch each."""
    found = []
    for number, (before, behind) in enumerate(((1, 12), (6, 2), (3, 5))):
        pixels, ids = llava.inputs(1, VISUAL + before + behind, seed + number)
        words = ids[ids != IMAGE_TOKEN]
        image = torch.full((VISUAL,), IMAGE_TOKEN)
        ids = torch.cat([words[:before], image, words[before:]]).unsqueeze(0)
        found.append({"pixel_values": pixels, "input_ids": ids, "attention_mask": ids * 0 + 1})
    return found


def batch(side: str, seed: int = 0) -> Inputs:
    """Return the three prompts as one batch, padded with zeros on a side."""
    alone = items(seed)
    length = max(item["input_ids"].shape[1] for item in alone)

    def filled(value: Tensor) -> Tensor:
        empty = value.new_zeros(1, length - value.shape[1])
        return torch.cat([value, empty] if side == "right" else [empty, value], 1)

    joined = {
        name: torch.cat([filled(item[name]) for item in alone])
        for name in ("input_ids", "attention_mask")
    }
    return {"pixel_values": torch.cat([item["pixel_values"] for item in alone]), **joined}


@functools.cache
def exported(attention: str, *, free: bool = True, layers: int = 4) -> ExportedProgram:
    """Return the program, traced on the padded batch, its sizes ``free`` or not; about 5 s."""
    model = llava.model(attention=attention, seed=0, layers=layers)
    size, length = Dim("batch", min=1, max=64), Dim("length", min=VISUAL + 2, max=256)
    shapes = ({0: size}, {0: size, 1: length}, {0: size, 1: length})
    names = ("pixel_values", "input_ids", "attention_mask")
    module = PromptLogits(model, images(model, Request(), {}), names)
    module = module.eval().requires_grad_(False)
    with torch.no_grad():
        return torch.export.export(
            module,
            tuple(batch("left").values()),
            dynamic_shapes=shapes if free else None,
            strict=False,
        )
