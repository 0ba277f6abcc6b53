"""First step: what the first new token is told: its position, its mask, and that there is room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tokopt.ir.decoding import Decoding
from tokopt.ir.errors import InputError
from tokopt.targets.coding import rows_of
from tokopt.targets.programs import Coder
from tokopt.targets.short_mask import short_mask
from tokopt.targets.signature import Signature


def first_position(
    how: Decoding,
    signature: Signature,
    prompt: Tensor,
    told: Mapping[str, Tensor],
    given: Tensor | None,
) -> Tensor:
    """Return the first new token's position in the shape of decode's input.

    That is ``given``, else the one behind the last of the prompt's positions where the main program
    was told these (``told``, by name), else the prompt's length ``prompt`` [B, S] has.
    """
    spec = next((s for s in signature.inputs if s.name == how.position), None)
    if given is None and how.positions is not None:
        rows = told[how.positions]  # several axes count one and the same text behind images
        axes = [axis for axis in range(rows.ndim) if axis != rows.ndim - 2]
        return (rows.amax(axes, keepdim=True) + 1).expand(*rows.shape[:-1], 1).contiguous()
    if given is None:
        if spec is not None and len(spec.shape) != prompt.ndim:
            raise InputError(
                f"decode takes positions of several axes as {how.position!r}",
                expected=f"position={spec.dtype} {list(spec.shape)}, that of the first new token",
            )
        return torch.full((prompt.shape[0], 1), prompt.shape[1])
    if spec is None:
        raise InputError("decode takes no position", expected="position=None")
    items = (prompt.shape[0], 1)
    fits = given.ndim == len(spec.shape) and given.shape[-2:] == items
    if not fits or str(given.dtype) != f"torch.{spec.dtype}":
        raise InputError(
            "the position of the first new token does not fit",
            where=f"given {str(given.dtype).removeprefix('torch.')} {list(given.shape)}",
            expected=f"{spec.dtype} {list(spec.shape)}, for {items[0]} prompts",
        )
    return given


def first_mask(
    how: Decoding,
    signature: Signature,
    prompt: Tensor,
    told: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    coders: Sequence[Coder] = (),
) -> Tensor | None:
    """Return the mask ``[B, rows]`` of the cache that the prompt left, None where decode has none.

    Raises ``InputError`` for prompts padded elsewhere than in front, or at all where decode would
    read the padding, or where padding would lie between rows in an order of their own.
    """
    padding = None if how.padding is None else told[how.padding]
    if padding is not None and not bool(padding[:, -1].all()):
        raise InputError(
            "a prompt is padded behind its last token, where the new ones belong",
            where=f"the input {how.padding!r}",
            expected="padding in front of the prompts (the tokenizer's padding_side='left')",
        )
    if padding is not None and any(one.pooled for one in coders):
        if not bool(padding.all()):
            raise InputError(
                "the cache stores salient rows apart, and padding cannot be told among them",
                where=f"the input {how.padding!r}",
                expected="prompts of one length, without padding",
                hint="run prompts of other lengths one by one, or compile with another --kv",
            )
    spec = next((s for s in signature.inputs if s.name == how.mask), None)
    if spec is None:
        if padding is not None and not bool(padding.all()):
            raise InputError(
                "decode takes no mask and would read the padding",
                where=f"the input {how.padding!r}",
                expected="prompts of one length, without padding",
                hint="export decode with a mask",
            )
        return None
    rows = rows_of(coders, given, how.caches[0].input, how.caches[0].dim)
    whole = torch.ones_like(prompt) if padding is None else padding
    short = short_mask(whole, rows, how.padding or "")
    return short.to(getattr(torch, spec.dtype))


def check_room(
    how: Decoding,
    signature: Signature,
    given: Mapping[str, Tensor],
    place: Tensor,
    most: int,
    coders: Sequence[Coder] = (),
) -> None:
    """Refuse what would overflow before anything is decoded; the last token needs no step."""
    sizes = {spec.name: spec.shape for spec in signature.inputs}
    for cache in how.caches:
        rows = rows_of(coders, given, cache.input, cache.dim)
        size = sizes[cache.input][cache.dim]
        room = signature.ranges.get(size, (0, None))[1] if isinstance(size, str) else size
        if room is not None and rows + most - 2 > room:
            raise InputError(
                f"the cache overflows: {rows} rows of the prompt and {most} new tokens",
                where=f"{how.program}.{cache.input}",
                expected=f"at most {max(room - rows + 2, 1)} new tokens behind this prompt",
                hint="lower max_new_tokens, or export decode with a longer cache",
            )
    last = int(place.max()) + most - 2
    if how.places is not None and how.position is not None and most > 1 and last >= how.places:
        raise InputError(
            f"the model has {how.places} positions, and the last token would be at {last}",
            where=f"{how.program}.{how.position}",
            expected=f"at most {max(how.places - int(place.max()) + 1, 1)} new tokens",
        )
