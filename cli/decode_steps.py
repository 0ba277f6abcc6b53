"""Decode steps: the steps of an answer one after the other, each timed alone.

Where a target writes new rows in place, a step that is given the prompt's cache again copies it
first, which no step of an answer does but the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tokopt.ir.decoding import Decoding
from tokopt.targets.base import Runner

STEPS = 16
"""Steps behind a prompt, until the next one begins with its cache again."""


def steps_of(run: Runner, given: Mapping[str, Tensor], how: Decoding) -> Callable[[], object]:
    """Return what runs one step and leaves the next its caches; ``given`` is the first's.

    All caches come back whole.  The token and its position stay: they cost the same.
    """
    taken, made = dict(given), 0

    def step() -> object:
        nonlocal made
        if made % STEPS == 0:
            taken.update(given)
        outputs, made = run(taken), made + 1
        taken.update({cache.input: outputs[cache.output] for cache in how.caches})
        if how.mask is not None:
            mask = taken[how.mask]
            taken[how.mask] = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        return outputs

    return step
