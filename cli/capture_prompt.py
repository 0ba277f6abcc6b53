"""Sample prompts: random text around one run of image placeholders, elsewhere in every item."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from tokopt.cli.capture_request import SPARE_TEXT, Request
from tokopt.ir.errors import InputError


def sample_prompt(
    batch: int,
    length: int,
    *,
    visual: int,
    token: int,
    vocabulary: int,
    reserved: Collection[int] = (),
    seed: int,
) -> Tensor:
    """Return ids ``[batch, length]`` (int64) with ``visual`` placeholders ``token`` in each row.

    Text ids are below ``vocabulary`` and neither ``token`` nor ``reserved``.  At least one text
    token stands on each side of the image, so ``length`` is at least ``visual + 2``.
    """
    if length < visual + 2:
        raise ValueError(f"a prompt of {length} has no room for {visual} placeholders and text")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (batch, length), generator=generator)
    plain = next(i for i in range(vocabulary) if i != token and i not in reserved)
    for special in {token, *reserved}:
        ids[ids == special] = plain
    room = length - visual - 1  # the last start that leaves one text token behind the image
    for item in range(batch):
        start = 1 + (2 + 3 * item + seed) % room
        ids[item, start : start + visual] = token
    return ids


def prompt_length(request: Request, visual: int, longest: int) -> int:
    """Return the length to trace at: the requested one, else ``visual`` and some text.

    It must hold the image and text on both sides, and be at most ``longest`` positions.
    """
    length = request.prompt_length
    if length is None:
        length = min(visual + SPARE_TEXT, longest)
    if not visual + 2 <= length <= longest:
        raise InputError(
            f"a prompt of {length} tokens does not fit",
            expected=f"{visual + 2} (an image is {visual} tokens) to {longest} (the model's limit)",
            hint="--prompt-length",
        )
    return length
