"""A tiny LLaVA and what a search on it needs, made once per test process."""

from __future__ import annotations

import functools

import torch
from testsuite.passes.analysed import Analysed, analysed
from torch import Tensor

from tokopt.passes.methods.registry import METHODS
from tokopt.passes.observe import Observation, observe
from tokopt.passes.search.replay import Replay

FEW = {name: METHODS[name] for name in ("fastv", "random", "stride", "vtc_cls")}
"""Methods that score quickly, in towers and decoders."""


@functools.cache
def llava() -> Analysed:
    return analysed("llava_dynamic")


@functools.cache
def batches() -> tuple[dict[str, Tensor], ...]:
    """Return two batches of other sizes."""
    family = llava()
    named = [family.named(inputs) for inputs in family.sample.all_inputs]
    return tuple(named[:2])


@functools.cache
def seen() -> tuple[Observation, ...]:
    with torch.no_grad():
        return tuple(observe(llava().facts, batch) for batch in batches())


def replay(room: int = 1 << 30) -> Replay:
    return Replay(llava().facts.exported, batches(), room)
