"""Padding: run programs of constant prompt length on shorter prompts.

Inputs are filled up on the right with values that change nothing at the rows in front, and what
comes out at the filled rows is cut off again.  A target that needs constant sizes gets a program
for each of a few lengths (buckets); the smallest that a prompt fits into runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.targets.base import Runner


@dataclass(frozen=True)
class Filled:
    """An input whose dim ``dim`` is the prompt's length; padded rows hold ``value``."""

    name: str
    dim: int
    value: int


@dataclass(frozen=True)
class Cropped:
    """A dim of an output that has as many rows more as the prompt has."""

    name: str
    dim: int


@dataclass(frozen=True)
class Padding:
    """The prompt lengths (``buckets``, ascending) there are programs for, and what is padded."""

    buckets: tuple[int, ...]
    inputs: tuple[Filled, ...]
    outputs: tuple[Cropped, ...]

    def length(self, inputs: Mapping[str, Tensor]) -> int:
        """Return the length of the prompt."""
        return inputs[self.inputs[0].name].shape[self.inputs[0].dim]

    def bucket(self, inputs: Mapping[str, Tensor]) -> int:
        """Return the smallest bucket that the prompt fits; ``InputError`` names the largest."""
        length = self.length(inputs)
        for bucket in self.buckets:
            if length <= bucket:
                return bucket
        raise InputError(
            f"a prompt of {length} rows",
            where=f"input {self.inputs[0].name!r}",
            expected=f"at most {self.buckets[-1]}, the largest of the artifact's prompt buckets",
            hint="tokopt compile --prompt-buckets sets them",
        )

    def padded(self, inputs: Mapping[str, Tensor], bucket: int) -> dict[str, Tensor]:
        """Return inputs of the bucket's length."""
        found = dict(inputs)
        for one in self.inputs:
            given = found[one.name]
            shape = list(given.shape)
            shape[one.dim] = bucket - shape[one.dim]
            found[one.name] = torch.cat([given, given.new_full(shape, one.value)], one.dim)
        return found

    def cropped(self, outputs: Mapping[str, Tensor], missing: int) -> dict[str, Tensor]:
        """Return outputs without the last ``missing`` rows."""
        found = dict(outputs)
        for one in self.outputs:
            value = found[one.name]
            found[one.name] = value.narrow(one.dim, 0, value.shape[one.dim] - missing)
        return found

    def runner(self, opened: Callable[[int], Runner]) -> Runner:
        """Return one function for all buckets; each program is ``opened`` when first needed."""
        opened = cache(opened)

        def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            bucket = self.bucket(inputs)
            outputs = opened(bucket)(self.padded(inputs, bucket))
            return self.cropped(outputs, bucket - self.length(inputs))

        return run
