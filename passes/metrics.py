"""Metrics: how attention is shared between text and image, how it concentrates, where it sinks.

From one run of the original (``observe``), layer by layer, a block of query rows at a time.

    MDI    (A_T / |T|) / (A_V / |V|)       how much more a text row is attended to than a visual one
    AEI_m  A_m / (A_T + A_V) · (|T| + |V|) / |m|                                  1: its fair share

A_T, A_V: the attention that the rows behind the image (the prompt's end, and the answer where the
inputs hold one) give to text and visual rows, mean over heads and rows ("When Language Overrules",
2025; its rows are those of generated tokens).  Concentration: the relay's head-mean attention over
the visual rows, as entropy over ln n and as the share of the 1, 5, 10 % most attended.  Sinks: rows
whose attention received from all rows is above ``FACTOR`` times the mean, and rows of massive
activation, φ = max |x| / RMS(x) > ``TAU`` on the layer's input (VAR, ICLR 2025).  Rows that the
last row may not read (padding) are left out.  Items of a batch are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from tokopt.passes.methods.fold import first_rows
from tokopt.passes.methods.method import LAST_ROW, LayerTap
from tokopt.passes.methods.received import BLOCK, received
from tokopt.passes.methods.rows import TINY, relay_attention, several, share
from tokopt.passes.observe import Observation, StackObservation

FACTOR, TAU = 10.0, 20.0
TOP = (1, 5, 10)
"""Per cent of the visual rows."""


@dataclass(frozen=True)
class LayerMetrics:
    """One layer; ``mdi`` and ``aei`` are None where no text reads visual rows.

    ``top`` are the shares of the ``TOP`` most attended visual rows; ``sinks`` and ``massive`` count
    rows per item (None: the layer's input is no place where the stream can be seen).
    """

    depth: int
    mdi: float | None
    aei_text: float | None
    aei_visual: float | None
    entropy: float
    top: tuple[float, ...]
    sinks: float
    massive: float | None


def measure(observation: Observation) -> Mapping[str, tuple[LayerMetrics, ...]]:
    """Return the metrics of every layer that attends everywhere, by the stack's role."""
    return {
        role: tuple(_layer(stack, layer) for layer in stack.layers)
        for role, stack in observation.stacks.items()
    }


def thirds(layers: Sequence[LayerMetrics]) -> Mapping[str, tuple[LayerMetrics, ...]]:
    """Return the first two, the middle two and the last two layers, as the paper reports them."""
    middle = max(len(layers) // 2 - 1, 0)
    return {
        "early": tuple(layers[:2]),
        "middle": tuple(layers[middle : middle + 2]),
        "late": tuple(layers[-2:]),
    }


def _layer(stack: StackObservation, layer: LayerTap) -> LayerMetrics:
    visual = stack.candidates
    real = _real(stack, layer)
    mdi = text = image = None
    if stack.stack.merge is not None:
        mdi, text, image = _balance(layer, visual & real, ~visual & real)
    relay = share(relay_attention(layer, stack.stack.relay), visual)
    ranked = relay.sort(dim=1, descending=True)[0]
    count = int(visual[0].sum())
    top = tuple(float(ranked[:, : ceil(count * p / 100)].sum(1).mean()) for p in TOP)
    mass = received(layer, real, int(real.sum(1).max()), everyone=False)
    fair = 1 / real.sum(1, keepdim=True)
    sinks = ((mass > FACTOR * fair) & real).float().sum(1).mean()
    return LayerMetrics(
        layer.depth,
        mdi,
        text,
        image,
        stack.entropies[layer.depth],
        top,
        float(sinks),
        _massive(stack, layer.depth, real),
    )


def _real(stack: StackObservation, layer: LayerTap) -> Tensor:
    """Return which rows are no padding, bool ``[B, N]``: those that the last row attends to."""
    if stack.stack.relay != LAST_ROW:
        return torch.ones_like(stack.candidates)
    return layer.row(LAST_ROW).amax(1) > 0


def _balance(layer: LayerTap, visual: Tensor, text: Tensor) -> tuple[float, float, float]:
    """Return MDI and the AEI of text and of visual rows, bool ``[B, N]``."""
    numbers = torch.arange(visual.shape[1])
    last = torch.where(visual, numbers, -1).amax(1, keepdim=True)
    asking = text & (numbers > last)
    asked = first_rows(asking, int(asking.sum(1).max()))
    to = {"text": torch.zeros(len(visual)), "visual": torch.zeros(len(visual))}
    for block in asked.split(BLOCK, 1):
        seen = several(layer, block).mean(1) * asking.gather(1, block).unsqueeze(-1)
        for name, rows in (("text", text), ("visual", visual)):
            to[name] = to[name] + (seen.sum(1) * rows).sum(1)
    of_text, of_visual = (rows.sum(1).clamp_min(1) for rows in (text, visual))
    per_text, per_visual = to["text"] / of_text, to["visual"] / of_visual
    fair = ((to["text"] + to["visual"]) / (of_text + of_visual)).clamp_min(TINY)
    mdi = per_text / per_visual.clamp_min(TINY)
    return float(mdi.mean()), float((per_text / fair).mean()), float((per_visual / fair).mean())


def _massive(stack: StackObservation, depth: int, real: Tensor) -> float | None:
    """Return how many rows of a layer's input have φ above ``TAU``, per item."""
    site = next((s.name for s in stack.stack.sites if s.depth == depth), None)
    if site is None:
        return None
    rows = stack.hidden[site].float()
    size = rows.square().mean(-1).sqrt().clamp_min(TINY)
    return float(((rows.abs().amax(-1) / size > TAU) & real).float().sum(1).mean())
