"""Memory: what a program hands itself from one call to the next, through an input and an output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Memory:
    """A tensor of the names it comes and goes by: fp32 of a constant shape, zeros at first.

    A call that gives no such output leaves it as it was.
    """

    input: str
    output: str
    shape: tuple[int, ...]


def with_memory(memory: Sequence[Memory], inputs: Mapping[str, T]) -> dict[str, T | Tensor]:
    """Return inputs by name, zeros for what is remembered and not given."""
    first = {one.input: torch.zeros(one.shape) for one in memory if one.input not in inputs}
    return {**inputs, **first}


def next_call(memory: Sequence[Memory], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs by which a call's outputs reach the next call."""
    return {one.input: outputs[one.output] for one in memory if one.output in outputs}
