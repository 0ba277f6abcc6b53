"""The hand-written vision-language model as serving stacks split it: three programs."""

from __future__ import annotations

import torch
from testsuite.zoo.handvlm import Decode, HandVlm, Sizes
from testsuite.zoo.weights import noise, randomise
from torch import Tensor
from torch.export import Dim, ExportedProgram


def inputs(sizes: Sizes, batch: int = 1, text: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return pixels and ids, the placeholders behind the first half of the text."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(sizes.image_token, (batch, text), generator=generator)
    visual = torch.full((batch, sizes.visual), sizes.image_token)
    ids = torch.cat([words[:, : text // 2], visual, words[:, text // 2 :]], dim=1)
    return noise(batch, 3, sizes.image, sizes.image, seed=seed), ids


def parts(
    sizes: Sizes, *, dynamic: bool = False, batch: bool = True, seed: int = 0
) -> dict[str, ExportedProgram]:
    """Export ``vision``, ``prefill`` and ``decode``; ``dynamic``: free batch, prompt and cache.

    Without ``batch`` the batch is 1 in any case.
    """
    model = randomise(HandVlm(sizes).eval().requires_grad_(False), seed)
    pixels, ids = inputs(sizes, 2 if dynamic and batch else 1)
    with torch.no_grad():
        features = model.vision(pixels)
        _, *cache = model.language(ids, features)
    token, place = ids[:, :1], torch.full_like(ids[:, :1], ids.shape[1])
    sized: list[object] = [None, None, None]
    if dynamic:
        items = {0: Dim("batch", min=1, max=64)} if batch else {}
        length, past = (Dim(name, min=2, max=sizes.longest) for name in ("length", "past"))
        sized = [
            (items,),
            ({**items, 1: length}, items),
            (items, items, [{**items, 2: past} for _ in cache]),
        ]
    calls = (
        (model.vision, (pixels,)),
        (model.language, (ids, features)),
        (Decode(model.language), (token, place, cache)),
    )
    with torch.no_grad():
        return {
            name: torch.export.export(module, given, dynamic_shapes=shapes, strict=False)
            for name, (module, given), shapes in zip(
                ("vision", "prefill", "decode"), calls, sized, strict=True
            )
        }
