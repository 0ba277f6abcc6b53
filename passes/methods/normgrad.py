"""NormGrad: the tokens on which the answer depends, in an order that is measured beforehand.

Paper: Rebuffi et al., "There and Back Again: Revisiting Backpropagation Saliency Methods", CVPR
2020, arXiv:2004.02866.  Its map needs a backward pass, which a graph for inference does not have.
So it is used offline: on calibration inputs every visual token gets the product over layers of
‖x‖ · ‖∂loss/∂x‖ (``passes/gradients.py``), and the order of the means is the option ``order``:
numbers of the visual tokens, the most important first.  It is the same for all inputs.

Without an order (no inputs to measure on) a token's importance is ‖x‖ alone, the factor of the
formula that needs no gradient.
"""

from __future__ import annotations

from torch import Tensor

from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.order import ORDER
from tokopt.passes.methods.rows import rank_of
from tokopt.passes.methods.schedules import before_decoder


def score(taps: Taps) -> Tensor:
    """Return how far from the end of the order each row is, or its norm, fp32 ``[B, N]``."""
    if taps.ranking is None:
        return taps.hidden.float().norm(dim=-1)
    numbers = rank_of(taps.candidates) if taps.numbers is None else taps.numbers
    worth = taps.ranking[numbers.clamp(0, taps.ranking.shape[0] - 1)]
    return worth.expand(taps.candidates.shape)


METHOD = Method(
    name="normgrad",
    paper="arXiv:2004.02866",
    licence="no licence was found",
    cost="O(N)",
    roles=frozenset({"vision", "decoder", "resampler"}),
    score=score,
    schedule=before_decoder,
    notes="one order for all inputs, of gradients on calibration inputs",
    options={ORDER: ""},
    ordered=True,
)
