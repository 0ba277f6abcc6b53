"""FlowCut's schedule: the published recurrence, frozen to constants by calibration.

After each odd layer l = 1, 3, .. 21 of 23 (layers 0 .. 22 are computed), with n tokens left and T
wanted:

    r_H = H(a) / ln n            entropy of the relay's attention over the n tokens, 1: no focus
    P   = round((n - T) / √ρ · (1 - r_H²)),  ρ = 21 - l;     n ← max(n - P, T);   ρ = 0: n ← T

As published P depends on the image, so lengths would be data.  Here r_H is the mean over the
calibration inputs, at each layer of the *unpruned* run, and the recurrence is evaluated once.
Without calibration r_H falls in a line from 0.98 (layer 0) to 0.80 (layer 21), the shape that the
paper reports, and the plan says "not calibrated".

Other depths: the site that follows layer l moves from entering l+1 of 23 to entering
round((l+1) · L/23), at least 1 and at most L-1; where two land on one site the later count holds.
Groups: counts are rounded up to whole groups.  Decoder: one cut entering layer 2 of 32.
"""

from __future__ import annotations

from math import ceil, sqrt

from tokopt.passes.methods.method import Placement, Setting

LAYERS, LAST = 23, 21
"""Published tower: layers computed, and the layer after which the last cut is made."""
DECODER_ENTERING, DECODER_LAYERS = 2, 32


def schedule(setting: Setting) -> tuple[Placement, ...]:
    """Stages after every second layer of a tower; one early stage in a decoder."""
    if setting.role == "decoder":
        depth = max(1, round(DECODER_ENTERING * setting.layers / DECODER_LAYERS))
        return (Placement(depth, setting.keep),)
    counts: dict[int, int] = {}
    left = setting.count
    for layer in range(1, LAST + 1, 2):
        depth = _depth(layer + 1, setting.layers)
        left = _after(layer, left, setting.keep, _ratio(layer, depth, setting))
        counts[depth] = ceil(left / setting.group) * setting.group
    return _without_idle(counts, setting.count)


def tower_rows(setting: Setting) -> int:
    """Return how many rows come into a decoder whose stage leaves ``setting.keep``."""
    return min(setting.count, 2 * setting.keep)


def _depth(published: int, layers: int) -> int:
    return max(1, min(round(published * layers / LAYERS), layers - 1))


def _ratio(layer: int, depth: int, setting: Setting) -> float:
    if setting.entropies is None:
        return 0.98 - 0.18 * layer / LAST
    return setting.entropies[depth - 1]


def _after(layer: int, left: int, target: int, ratio: float) -> int:
    if layer == LAST:
        return min(left, target)
    cut = round((left - target) / sqrt(LAST - layer) * (1 - ratio**2))
    return max(left - cut, target)


def _without_idle(counts: dict[int, int], start: int) -> tuple[Placement, ...]:
    """Return placements, those that drop nothing left out (the last one always stays)."""
    found: list[Placement] = []
    before = start
    for depth, keep in counts.items():
        if keep < before or depth == max(counts):
            found.append(Placement(depth, keep))
        before = keep
    return tuple(found)
