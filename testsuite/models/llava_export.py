"""How the small LLaVA is exported: forward(pixel_values, input_ids) -> logits.

Batch and prompt length are free.  ``tokopt export`` would do it too, but the archive is older.
"""

import torch
from testsuite.models.digits import WHAT, Samples, samples
from testsuite.models.llava import visual_rows
from torch import nn
from torch.export import Dim
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokopt.cli.capture import Capture

BATCH = 50
"""How many pictures are given at once."""


class Answering(nn.Module):
    """What is exported: pixel_values [B, 3, 144, 144], input_ids [B, S] -> logits [B, S, WORDS]."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Prefill without cache.

        LLaVA's own forward turns the image features into a list, which fixes the batch size; so
        they are handed to it by its door for features computed elsewhere.
        """
        rows, _ = visual_rows(self.model, pixel_values)
        image = BaseModelOutputWithPooling()
        image.pooler_output = [rows.flatten(0, 1)]  # type: ignore[assignment]
        return self.model(
            input_ids=input_ids, mm_encoder_outputs={"image": image}, use_cache=False
        ).logits


def inputs(asked: Samples) -> dict[str, torch.Tensor]:
    """Samples as the program takes them."""
    return {"pixel_values": asked.pixel_values, "input_ids": asked.input_ids}


def capture(model: LlavaForConditionalGeneration) -> Capture:
    """The model ready for tracing: batch 1 to 256, prompts up to 512; other sizes to compare on."""
    batch, length = Dim("batch", max=256), Dim("length", min=146, max=512)

    def given(size: int, extra: int) -> tuple[torch.Tensor, ...]:
        asked = samples(size, size)
        more = torch.full((size, extra), WHAT)
        return asked.pixel_values, torch.cat([more, asked.input_ids], 1)

    module = Answering(model).eval()
    shapes = {0: batch}, {0: batch, 1: length}
    others = given(1, 0), given(3, 5), given(5, 1)
    return Capture(module, module, given(2, 0), others, shapes, {})
