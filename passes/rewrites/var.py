"""VAR: take attention from sinks and give it to the visual tokens that are none.

Paper: Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models",
ICLR 2025, arXiv:2503.03321.  At a layer with input x and attention A, for rows behind the image:

    phi_j = max_{d in D} |x_j[d]| / RMS(x_j)       j is a sink where phi_j > tau
    s     = sum of A over visual tokens, v = the part of it on tokens that are no sinks
    a head acts in a row where s >= summ and v / s >= rho:
        A_j <- p A_j at sinks, text ones too;  what that frees, (1 - p) sum_sinks A, goes to the
        visual tokens that are no sinks, in proportion to their A

Every row keeps its sum.  Layers 2 and up.

Where we differ: D are dims that a model's sinks are known by (LLaMA2-7B: 1415 and 2533).  By
default every dim is looked at: in those of a row that is no sink nothing exceeds tau = 20.
``dims`` names them ("1415,2533").  rho is the paper's; the code's is 1 - rho.  Decode is a program
of its own and is left as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.methods.rows import TINY
from tokopt.passes.rewrites.attended import Attended
from tokopt.passes.rewrites.rewrite import Rewrite
from tokopt.passes.rewrites.scaling import Scaling

EVERY = "all"


def sets(taps: Attended) -> Tensor:
    """Return which keys are sinks, which visual ones are none, which visual, ``[B, 3, N]``."""
    sinks = _sinks(taps)
    return torch.stack([sinks, taps.candidates & ~sinks, taps.candidates], dim=1).float()


def factors(taps: Attended, masses: Tensor) -> Tensor:
    """Return by how much attention grows at sinks and at visual tokens that are none."""
    p, rho, summ = (float(taps.options[name]) for name in ("p", "rho", "summ"))
    sink, share, total = masses.unbind(-1)
    acts = (total >= summ) & (share >= rho * total) & (share > 0)
    grown = torch.stack([torch.full_like(sink, p - 1), (1 - p) * sink / share.clamp_min(TINY)], -1)
    return torch.where(acts.unsqueeze(-1), grown, 0.0)


def _sinks(taps: Attended) -> Tensor:
    """Return which rows are sinks, bool ``[B, N]``."""
    hidden = taps.hidden.float()
    size = hidden.square().mean(-1).sqrt().clamp_min(TINY)
    asked = str(taps.options["dims"])
    if asked != EVERY:
        hidden = torch.stack([hidden[..., d] for d in _dims(asked, hidden.shape[-1])], dim=-1)
    return hidden.abs().amax(-1) / size > float(taps.options["tau"])


def _dims(text: str, width: int) -> list[int]:
    numbers = [part.strip() for part in text.split(",")]
    if not all(n.isdecimal() and int(n) < width for n in numbers):
        raise InputError(
            f"var: dims = {text!r}", expected=f"{EVERY!r}, or numbers below {width}: '1415,2533'"
        )
    return [int(n) for n in numbers]


SCALING = Scaling(sets, factors, scaled=2)

REWRITE = Rewrite(
    name="var",
    paper="arXiv:2503.03321",
    roles=frozenset({"decoder"}),
    rows="behind",
    attend=SCALING.attend,
    scaling=SCALING,
    first=2,
    options={"p": 0.6, "rho": 0.5, "summ": 0.2, "tau": 20.0, "dims": EVERY},
    neutral={"p": 1.0},
    licence="Apache-2.0",
    cost="O(N²)",
    notes="attention of text rows moves from sinks to other visual tokens",
)
