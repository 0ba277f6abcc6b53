"""The trained models by name, and what the judge needs of each.

A family is one architecture with its sizes.  Both read the same prompts and have TOKENS visual rows
in the decoder, one for each cell of the canvas, row by row; so pictures, questions, losses,
training, export and fitness are shared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from testsuite.models import llava, llava_export, qwen2vl, qwen2vl_export
from testsuite.models.digits import IMAGE, Samples

from tokopt.cli.capture import Capture

WIDTH = llava.WIDTH
assert WIDTH == qwen2vl.WIDTH


@dataclass(frozen=True)
class Family:
    """What differs between the models."""

    fresh: Callable[[], Any]
    """The model with random weights."""
    visual_rows: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    """(model, pixel_values [B, 3, SIDE, SIDE], index [B, k] or None) -> rows, summary."""
    position_ids: Callable[[torch.Tensor], torch.Tensor]
    """Places in the prompt [B, L] -> what the decoder takes."""
    capture: Callable[[Any], Capture]
    """The model made ready for tracing."""
    inputs: Callable[[Samples], dict[str, torch.Tensor]]
    """Samples as the exported program takes them."""
    batch: int
    """How many samples to give to the program at once."""


FAMILIES: Mapping[str, Family] = {
    "llava": Family(
        llava.llava,
        llava.visual_rows,
        llava.position_ids,
        llava_export.capture,
        llava_export.inputs,
        llava_export.BATCH,
    ),
    "qwen2vl": Family(
        qwen2vl.qwen2vl,
        qwen2vl.visual_rows,
        qwen2vl.position_ids,
        qwen2vl_export.capture,
        qwen2vl_export.inputs,
        qwen2vl_export.BATCH,
    ),
}


def last_logits(
    family: Family,
    model: Any,
    rows: torch.Tensor,
    input_ids: torch.Tensor,
    keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits [B, WORDS] after the last position, of the visual rows in ``keep`` only.

    ``rows`` come from ``visual_rows``; ``keep`` is bool [B, TOKENS], as many in every item.  Text
    rows always stay; every row keeps its position id.
    """
    image = input_ids == IMAGE
    words = model.get_input_embeddings()(input_ids)
    merged = words.masked_scatter(image[..., None], rows)
    alive = torch.ones_like(image)
    if keep is not None:
        alive[image] = keep.flatten()
    place = alive.nonzero()[:, 1].view(len(alive), -1)
    kept = merged.gather(1, place[..., None].expand(-1, -1, merged.shape[-1]))
    seen = model.model.language_model(
        inputs_embeds=kept,
        # without a mask transformers takes jumps in the position ids for the seams of packed
        # sequences, and hides everything before the last jump
        attention_mask=torch.ones_like(place),
        position_ids=family.position_ids(place),
        use_cache=False,
    )
    return model.lm_head(seen.last_hidden_state[:, -1])
