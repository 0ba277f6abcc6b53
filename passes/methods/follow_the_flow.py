"""Follow the Flow: of a text encoder's rows only those are handed on that carry what words mean.

Paper: Kaplan et al., "Follow the Flow: On Information Flow Across Textual Tokens in Text-to-Image
Models", 2025, arXiv:2504.01137 (code at 2433871).  At the encoder's output, before the consumer
(a diffusion model's cross-attention) reads it, with h_i the rows and S those that represent their
item (in causal encoders the last sub-token of a word):

    t_i = h_i for i in S, else the row of a padding token

Which rows are in S the authors decide by hand, by a judge or by a trained probe.  Here the caller
says it: the input ``state_<stage>_wanted``, ``[B, N]``, is above 0 at them, in every call.  Where
it is 0 everywhere, and where fewer are wanted than stay, rows are taken whose replacement by a
padding row p (the last row) would change most, ‖h_i - p‖: of K rows those leave the smallest sum of
squares.  The first row and the rows that the program itself reads by number (CLIP's end of text)
always stay; where it reads none, the last real row.

Where we differ: rows are left out and not replaced, so that the consumer's keys and values are
fewer (``outputs = "kept"``; K covers the words of the longest prompt, padding fills it up); with
``outputs = "full"`` they are zeros, and whoever needs padding rows there puts them where the trace
says.  The paper's repair of leaked items (rows of a separate encoding) is not a selection.

The one method that drops text: it is placed in models of text alone, and only where it is named.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.methods.method import ITEMS, LAST_ROW, ROWS, Method, Placement, Setting, Taps

FEWEST = 2
"""The first row and the end of the text."""
WANTED, FIXED = 2.0, 4.0
"""What is added to a distance below 1: those wanted go before others, those fixed before all."""


def score(taps: Taps) -> Tensor:
    """Return distances to a padding row, in [0, 1), more at wanted and fixed rows, ``[B, N]``."""
    if taps.keep < FEWEST:
        raise UnsupportedError(
            f"follow_the_flow keeps the first row and the end of the text, and keep = {taps.keep}",
            expected=f"at least {FEWEST} rows",
        )
    rows = taps.hidden.float()
    far = (rows - rows[:, -1:]).square().sum(-1).sqrt()
    wanted = taps.kept("wanted", *rows.shape[:2]) > 0
    fixed = _fixed(taps)
    return torch.where(fixed, FIXED, far / (1.0 + far) + WANTED * wanted.float())


def remember(taps: Taps, stay: Tensor) -> Mapping[str, Tensor]:
    """Return nothing wanted: every call says it anew."""
    return {"wanted": taps.state["wanted"] * 0.0}


def at_end(setting: Setting) -> tuple[Placement, ...]:
    """One stage behind the last layer, of the fixed rows at least."""
    return (Placement(setting.layers, max(setting.keep, FEWEST)),)


def _fixed(taps: Taps) -> Tensor:
    numbers = torch.arange(taps.hidden.shape[1], device=taps.hidden.device)
    first = (numbers == 0).expand(taps.hidden.shape[:2])
    if taps.picked is not None:
        return first | taps.picked
    last = taps.want_layers("follow_the_flow")[-1].number(LAST_ROW)
    if isinstance(last, int):
        return first | (numbers == taps.hidden.shape[1] + last)
    return first | (numbers == last.unsqueeze(-1))


METHOD = Method(
    name="follow_the_flow",
    paper="arXiv:2504.01137",
    licence="no licence file",
    cost="O(N)",
    roles=frozenset({"text"}),
    score=score,
    schedule=at_end,
    needs=frozenset({"layers", "picked"}),
    notes="of a text encoder the rows its caller wants, else those farthest from padding",
    state={"wanted": (ITEMS, ROWS)},
    remember=remember,
)
