"""HoloV: every crop of the image gets a share of the tokens; in a crop attention and variety count.

Paper: Zou et al., "Don't Just Chase Highlighted Tokens in MLLMs: Revisiting Visual Holistic Context
Retention", NeurIPS 2025, arXiv:2510.02912.  The n visual tokens are split, in order, into C crops
of M (the first n mod C have one more).  a_i = mean_h A[CLS, i] of the layer whose output is the
feature; in a crop, with x̂ of length 1:

    S_ij = x̂_i · x̂_j, S_ii = 0;  μ_i = Σ_j S_ij / (M-1);  V_i = Σ_j (S_ij - μ_i)² / (M-1)
    H_i  = a_i + γ V_i,  γ = mean a / mean V
    w_c  ∝ mean H of the crop;  q_c = ⌊w_c K⌋, one more for the crops of largest w until Σ q = K

The q_c tokens of largest H stay.  C = max(1, ⌊1024/576 · n/K⌋); 16 at 64 of 576.  ``crops`` sets C.

Paper against code: in the code H = 1000a + 0.09 γ V and, since γ makes the means equal, w_c is the
crop's share of attention; inside a crop it then takes the largest a, so that variety never counts.
We follow the paper; ``compat="code"`` is the code's choice.  A crop that cannot fill its share: the
paper hands the rest to others by w (M - q), the code pads with zeros; here the best tokens left
over, of any crop, stay.  The code puts the tokens of a crop in order of attention; here in theirs.

Where we differ: x are the rows at the end of the tower, not behind the projector.  Towers without
class token (the Qwen code takes attention received) are refused.  Where rows leave in groups, these
go by the mean of their scores, and the shares of crops hold only roughly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.methods import settings
from tokopt.passes.methods.fold import first_rows, normalised
from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.quota import by_quota, quotas
from tokopt.passes.methods.rows import rank_of, relay_attention
from tokopt.passes.methods.schedules import tower_end

EPS = 1e-6


def score(taps: Taps) -> Tensor:
    """Return what is above 1 at the rows within their crop's share, ``[B, N]`` (``quota.py``)."""
    relay = taps.want_relay("holov", "use flowcut or fopru, which can do without")
    compat = settings.choice(taps, "holov", "compat", "paper", "code")
    attention = relay_attention(taps.want_layers("holov")[-1], relay)
    rows = first_rows(taps.candidates, taps.count)
    real = taps.candidates.gather(1, rows)
    index, inside = _crops(taps, rows.device)
    number = rows[:, index]
    inside = inside & real[:, index]
    mass = attention.gather(1, number.flatten(1)).unflatten(1, index.shape) * inside
    wide = number.flatten(1).unsqueeze(-1).expand(-1, -1, taps.hidden.shape[-1])
    crop = normalised(taps.hidden.gather(1, wide)).unflatten(1, index.shape)
    both = mass + _variety(crop, mass, inside)
    size = inside.sum(-1)
    quota = quotas(both.sum(-1) / size.clamp_min(1), taps.keep)
    chosen = both if compat == "paper" else mass
    entry = _entry(taps, *index.shape)
    shown = chosen.flatten(1).gather(1, entry)
    crop = torch.where(taps.candidates, entry // index.shape[1], -1)
    return by_quota(shown, crop, quota)


def _crops(taps: Taps, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the visual tokens of each crop, int64 ``[C, M]``, and which entries are any."""
    count, given = taps.count, taps.options.get("crops", "scaled")
    crops = max(1, int(1024 / 576 * count / taps.keep)) if given == "scaled" else given
    if not isinstance(crops, int) or crops < 1:
        raise InputError(f"holov: crops = {given!r}", expected="'scaled', or a number above 0")
    crops = min(crops, count)
    size, more = divmod(count, crops)
    numbers = torch.arange(crops, device=device)
    start = numbers * size + numbers.clamp_max(more)
    place = torch.arange(size + (more > 0), device=device)
    inside = place < (size + (numbers < more).long()).unsqueeze(-1)
    return (start.unsqueeze(-1) + place).clamp_max(count - 1), inside


def _entry(taps: Taps, crops: int, width: int) -> Tensor:
    """Return where in ``[C, M]`` each visual row is, int64 ``[B, N]``; 0 for other rows."""
    size, more = divmod(taps.count, crops)
    number = rank_of(taps.candidates).clamp_min(0)
    longer = more * (size + 1)
    rest = number - longer
    crop = torch.where(rest < 0, number // (size + 1), more + rest // size)
    place = number - crop * size - crop.clamp_max(more)
    return torch.where(taps.candidates, crop * width + place, 0)


def _variety(crop: Tensor, mass: Tensor, inside: Tensor) -> Tensor:
    """Return γ V, ``[B, C, M]``, of rows ``[B, C, M, d]`` of length 1."""
    size = inside.sum(-1, keepdim=True)
    other = inside.unsqueeze(-1) & inside.unsqueeze(-2)
    apart = ~torch.eye(crop.shape[2], dtype=torch.bool, device=crop.device)
    alike = (crop @ crop.transpose(-2, -1)) * (other & apart)
    rest = (size - 1).clamp_min(1)
    mean = alike.sum(-1) / rest
    spread = ((alike - mean.unsqueeze(-1)) * other).square().sum(-1) / rest
    level = mass.sum(-1, keepdim=True) / size.clamp_min(1)
    return level / (spread.sum(-1, keepdim=True) / size.clamp_min(1) + EPS) * spread


METHOD = Method(
    name="holov",
    paper="arXiv:2510.02912",
    licence="Apache-2.0",
    cost="O(N·K)",
    roles=frozenset({"vision"}),
    score=score,
    schedule=tower_end,
    needs=frozenset({"layers", "relay"}),
    notes="a share of the tokens for every crop, attention and variety inside",
    options={"crops": "scaled", "compat": "paper"},
    tunes={"crops": (1, 4), "compat": ("code",)},
)
