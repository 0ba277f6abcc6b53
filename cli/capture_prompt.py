"""Sample prompts: random text around runs of placeholders, elsewhere in every item."""

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
    images: int = 1,
    mask: Tensor | None = None,
    seed: int,
) -> Tensor:
    """Return ids ``[batch, length]`` (int64) with ``visual`` placeholders ``token`` in each row.

    They stand in ``images`` runs of equal length.  Text ids are below ``vocabulary`` and neither
    ``token`` nor ``reserved``.  At least one text token stands in front of, between and behind the
    runs, so ``length`` is at least ``visual + images + 1``; where ``mask`` [batch, length] is 0
    (padding) there is text that nothing may read.
    """
    if length < least_prompt(visual, images):
        raise ValueError(f"a prompt of {length} has no room for {visual} placeholders and text")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (batch, length), generator=generator)
    plain = next(i for i in range(vocabulary) if i != token and i not in reserved)
    for special in {token, *reserved}:
        ids[ids == special] = plain
    for item in range(batch):
        first, rows = (0, length) if mask is None else _span(mask[item])
        room = rows - visual - images  # ways to place the first run, the others right behind
        place = first + 1 + (2 + 3 * item + seed) % room
        for _ in range(images):
            ids[item, place : place + visual // images] = token
            place += visual // images + 1
    return ids


def sample_mask(batch: int, length: int, least: int, seed: int) -> Tensor:
    """Return 0/1 ``[batch, length]`` int64: rows padded on the left, on the right, not at all.

    At least ``least`` tokens of every row stay.
    """
    mask = torch.ones(batch, length, dtype=torch.int64)
    for item in range(batch):
        width = min(3 + item, length - least)
        side = (item + seed) % 3
        if side == 0:
            mask[item, :width] = 0
        elif side == 1:
            mask[item, length - width :] = 0
    return mask


def least_prompt(visual: int, images: int) -> int:
    """Return the length of the shortest prompt: text around and between the images."""
    return visual + images + 1


def prompt_length(request: Request, visual: int, longest: int, images: int = 1) -> int:
    """Return the length to trace at: the requested one, else ``visual`` and some text.

    It must hold the images and text around them, and be at most ``longest`` positions.
    """
    length, least = request.prompt_length, least_prompt(visual, images)
    if length is None:
        length = min(visual + SPARE_TEXT, longest)
    if not least <= length <= longest:
        raise InputError(
            f"a prompt of {length} tokens does not fit",
            expected=f"{least} (images are {visual} tokens) to {longest} (the model's limit)",
            hint="--prompt-length",
        )
    return length


def _span(mask: Tensor) -> tuple[int, int]:
    """Return where the one run of ones starts and how long it is."""
    return int(mask.argmax()), int(mask.sum())
