"""FlowCut: the relay's view of each token, summed up over the layers, cut a little at every second.

Paper: Tong et al., "FlowCut: Rethinking Redundancy via Information Flow", NeurIPS 2025,
arXiv:2505.19536.  A token's score in one layer, j over the n candidates that are left:

    class token   S_j = (a_j + s_j) · ‖mean_h v_j‖₁   a = mean_h A[CLS, :]
                                                      s = mean_h softmax(v_CLS · v), no 1/√d
    none          S_j = a_j · ‖mean_h v_j‖₁           a = mean_h softmax(q̄ · k / √d), q̄ = mean q
    decoder       S_j = (a_j + s_j) · ‖mean_h v_j‖₁   as class token, from the last prompt token,
                                                      softmax over visual keys only, s with 1/√d

a and s are scaled to sum 1 over candidates (not in the form without relay, which has one factor).
In a tower C ← ½C + ½S over every layer, C of the first layer S; survivors carry C on.  In the
decoder one layer is read and one cut made.

Paper against code: the paper divides by √d in the tower's s too, the code does not; the code is
followed.  The code also normalises scores in its form without relay, then does not use them.

Where we differ: the published counts depend on the image; ours are the same recurrence on mean
entropies (``flowcut_schedule``).  Rows that must stay together (2x2 groups) do; the code for Qwen
removes single patches.  Decoder: the model's own mask and scale apply.  The published pair of cuts
for many tokens (LLaVA-NeXT, Qwen2-VL: tower to 2T, then decoder to T) is ``stacks="both"``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods.flowcut_schedule import schedule, tower_rows
from tokopt.passes.methods.method import LAST_ROW, STACKS, LayerTap, Method, Taps
from tokopt.passes.methods.rows import LOWEST, TINY, at_row, dot, relay_attention, share


def score(taps: Taps) -> Tensor:
    """Return the accumulated flow ``[B, N]``; in a decoder that of the layer before the site."""
    layers = taps.want_layers("flowcut")
    if taps.relay == LAST_ROW:
        return flow(layers[-1], taps.candidates, LAST_ROW)
    total = taps.carried
    for layer in layers:
        step = flow(layer, taps.candidates, taps.relay)
        total = step if total is None else 0.5 * total + 0.5 * step
    assert total is not None
    return total


def flow(layer: LayerTap, candidates: Tensor, relay: int | None) -> Tensor:
    """Return one layer's S ``[B, N]``."""
    density = layer.value.float().mean(1).abs().sum(-1)
    if relay is None:
        return relay_attention(layer, None) * density
    attention = layer.row(relay)
    alike = dot(at_row(layer.value, layer.number(relay)), layer.value)
    if relay == LAST_ROW:
        visual = candidates.unsqueeze(1)
        attention = attention.masked_fill(~visual, 0.0)
        attention = attention / attention.sum(-1, keepdim=True).clamp_min(TINY)
        alike = (alike * layer.value.shape[-1] ** -0.5).masked_fill(~visual, LOWEST)
    semantic = torch.softmax(alike, dim=-1)
    return (share(attention.mean(1), candidates) + share(semantic.mean(1), candidates)) * density


METHOD = Method(
    name="flowcut",
    paper="arXiv:2505.19536",
    licence="Apache-2.0",
    cost="O(N)",
    roles=frozenset({"vision", "decoder"}),
    score=score,
    schedule=schedule,
    needs=frozenset({"layers"}),
    calibrated=frozenset({"vision"}),
    options={STACKS: "one"},
    tower_rows=tower_rows,
    notes="relay attention, value similarity and value norm, accumulated layer by layer",
)
