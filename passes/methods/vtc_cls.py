"""VTC-CLS: keep the patches that the class token looked at in the last third of the tower.

Paper: Wang et al., "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs", 2024.

    score_j = Σ_{l=s}^{last} mean_h A^l[CLS, j]          A^l after the softmax, layers from 0

One stage at the end of the tower, top-k in original order.  Published: s = 16 where features come
from the output of layer 22 (LLaVA-1.5), so the last 7 of the 23 layers that are computed.

Here: s = round(16/23 · n) for n layers before the site, so the published tower gets s = 16, also
when a stage has to move earlier.  ``start`` sets s itself.  The relay is the row the graph reads as
class token; learned rows are never dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.methods.method import Method, Placement, Setting, Taps
from tokopt.passes.methods.rows import relay_attention

START, LAYERS = 16, 23


def score(taps: Taps) -> Tensor:
    """Return the summed class-token attention ``[B, N]``."""
    relay = taps.want_relay("vtc_cls", "use flowcut, which can do without")
    layers = taps.want_layers("vtc_cls")
    chosen = [layer for layer in layers if layer.depth >= _start(taps)]
    return torch.stack([relay_attention(layer, relay) for layer in chosen]).sum(0)


def _start(taps: Taps) -> int:
    before = taps.layers[-1].depth + 1
    start = taps.options.get("start", "scaled")
    if start == "scaled":
        return min(round(START * before / LAYERS), before - 1)
    if not isinstance(start, int) or not 0 <= start < before:
        raise InputError(
            f"vtc_cls: start = {start!r}", expected=f"'scaled', or a layer in 0 .. {before - 1}"
        )
    return start


def schedule(setting: Setting) -> tuple[Placement, ...]:
    """One stage, after the tower's last layer."""
    return (Placement(setting.layers, setting.keep),)


METHOD = Method(
    name="vtc_cls",
    paper="arXiv:2412.05819",
    roles=frozenset({"vision"}),
    score=score,
    schedule=schedule,
    needs=frozenset({"layers", "relay"}),
    notes="class-token attention summed over the last third of the tower",
    options={"start": "scaled"},
)
