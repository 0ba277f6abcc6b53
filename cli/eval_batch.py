"""Eval batches: labelled samples as a program takes them, its batch size kept.

A program exported for a fixed batch, or for no fewer items than are left, gets the last sample
again until there are enough; only the answers to real samples are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.targets.signature import Signature


@dataclass(frozen=True)
class Batch:
    """Samples to run together: ``inputs`` fit the program, the first n of their items are real.

    ``answers`` int64 ``[n]``; ``kinds`` the name of each sample's kind; ``where`` the file.
    """

    inputs: Mapping[str, Tensor]
    answers: Tensor
    kinds: tuple[str, ...]
    where: str = ""


def batch_range(signature: Signature) -> tuple[int, int | None]:
    """Return the least and greatest number of samples that a program takes at once.

    Raises ``InputError`` where its inputs are not all batched along dim 0.
    """
    sizes = {spec.shape[0] if spec.shape else 0 for spec in signature.inputs}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    if isinstance(size, int) and size > 0:
        return size, size
    if isinstance(size, str) and size in signature.ranges:
        return signature.ranges[size]
    shapes = "; ".join(f"{s.name} [{', '.join(map(str, s.shape))}]" for s in signature.inputs)
    raise InputError(
        "samples cannot be told apart in the program's inputs",
        where=shapes,
        expected="one batch size in dim 0 of every input",
    )


def batch_size(signature: Signature, wanted: int) -> int:
    """Return the number of samples nearest to ``wanted`` that a program takes at once."""
    if wanted < 1:
        raise InputError(f"a batch of {wanted} samples", expected="at least 1")
    least, greatest = batch_range(signature)
    return max(least, wanted if greatest is None else min(wanted, greatest))


def padded(inputs: Mapping[str, Tensor], least: int) -> dict[str, Tensor]:
    """Return inputs with their last sample repeated until there are ``least``."""
    return {
        name: torch.cat([value, value[-1:].expand(max(0, least - len(value)), *value.shape[1:])])
        for name, value in inputs.items()
    }
