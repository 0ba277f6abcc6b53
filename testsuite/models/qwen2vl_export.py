"""How the small Qwen2-VL is exported: by ``tokopt export``'s own capture, one picture, length free.

forward(pixel_values [576, 216], input_ids [1, S], position_ids [3, 1, S]) -> logits.  The library
packs the patches of all pictures in one sequence, so the batch cannot be left free.
"""

import torch
from testsuite.models.canvas import SIDE
from testsuite.models.digits import PROMPT, Samples
from testsuite.models.qwen2vl import patches, position_ids
from transformers import Qwen2VLForConditionalGeneration

from tokopt.cli.capture import Capture
from tokopt.cli.capture_families import FAMILIES
from tokopt.cli.capture_request import Request

BATCH = 1
"""How many pictures are given at once."""


def inputs(asked: Samples) -> dict[str, torch.Tensor]:
    """Samples (one for the program) as it takes them."""
    size = len(asked.pixel_values)
    return {
        "pixel_values": patches(asked.pixel_values).flatten(0, 2).contiguous(),
        "input_ids": asked.input_ids,
        "position_ids": position_ids(torch.arange(PROMPT).expand(size, -1)),
    }


def capture(model: Qwen2VLForConditionalGeneration) -> Capture:
    """The model ready for tracing, with other lengths to compare on."""
    request = Request((SIDE, SIDE), PROMPT, frozenset({"length"}))
    return FAMILIES["qwen2_vl"].prepare(model.requires_grad_(False), request, {})
