"""VFlowOpt: one importance map from the tower, three cuts, what the first drops is recycled.

Paper: Yang et al., "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information
Flow-Guided Optimization", ICCV 2025, arXiv:2508.05211.  With Ā the head mean of the tower's last
attention and g_j = mean_i Ā_ij what row j receives:

    K    = { j : g_j > t · mean g }                       the rows that hold the context
    I_i  = mean_{k in K} Ā_ki + α · softmax_i(H_i)        H: entropy of the patch's grey values
    S1   in front of the decoder: all but the lowest stay; m rows are made of the lowest: bucketed
         by cells of a x a places, a cell's best row becomes Σ I x / Σ I
    S2   entering layer L/3, and S3 entering 2L/3: the lowest of what is left go

t, a and the shares that stay are the released settings for budgets 0.5, 0.25 and 0.1 and lie on
lines between them; t and a scale with the grid (released for 27 x 27).  α is 0 in all of them:
then no pixel is read.

Where we differ: exactly m cells are made, those of the largest Σ I (in the code as many as are not
empty, so counts depend on the image); where K is empty it is the row of the largest g (the code
divides by 0); positions are kept (the code renumbers behind S1).  Rows without a place (newlines)
stay, as in the code.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from tokopt.passes.methods.entropy import grey_entropy
from tokopt.passes.methods.fold import has_any, rows_at, segmented_mean
from tokopt.passes.methods.method import Method, Placement, Setting, Taps, TowerTap
from tokopt.passes.methods.received import received
from tokopt.passes.methods.rows import LOWEST, TINY, several, top_rows
from tokopt.passes.methods.schedules import between, staged

SHARES = (
    (0.0, 0.0, 0.0, 39.26, 17.387),
    (0.11662, 0.11662, 0.0701, 39.26, 17.387),
    (0.2651, 0.26068, 0.22871, 34.76, 15.581),
    (0.72332, 0.54159, 0.26375, 28.68, 11.757),
    (1.0, 1.0, 1.0, 28.68, 11.757),
)
"""Released settings: the shares of all rows behind S1, S2 and S3, t and a; between them, lines."""
GRID, ALWAYS = 27, 10.0


def score(taps: Taps) -> Tensor:
    """Return importance scaled to at most 1; at S1 8 more at rows kept, 4 more at cells' rows."""
    if taps.carried is not None:  # one map for all stages
        before = taps.carried
        return before - 8.0 * (before >= 6.0) - 4.0 * ((before >= 2.0) & (before < 6.0))
    importance = _importance(taps)
    kept, cells, _ = _recycled(taps, importance)
    return importance + 8.0 * kept + 4.0 * cells


def combine(taps: Taps, stay: Tensor) -> Tensor:
    """Return the rows that stay; at S1 cells' rows hold what is left of their cell."""
    rows = rows_at(taps.hidden, stay)
    if taps.carried is not None:
        return rows
    importance = _importance(taps)
    kept, cells, cell = _recycled(taps, importance)
    count = _cell_count(taps)
    rest = taps.candidates & ~kept & (cell >= 0)
    weight = torch.where(rest, importance, 0.0)
    mean, made = segmented_mean(taps.hidden, cell, weight, count), has_any(cell, count, weight)
    own, at = cells.gather(1, stay), cell.gather(1, stay).clamp_min(0)
    full = (_members(cell, rest, count) > 1).unsqueeze(-1) & made
    written = own.unsqueeze(-1) & (rows_at(full.float(), at) > 0)
    return torch.where(written, rows_at(mean, at).to(rows.dtype), rows)


def _importance(taps: Taps) -> Tensor:
    tower = taps.want_tower("vflowopt")
    context = _context(tower, _setting(taps, 3) * tower.rows.shape[1] / GRID**2)
    alpha = float(taps.options.get("alpha", 0.0))
    if alpha:
        entropy = grey_entropy(tower.want_patches("vflowopt"))
        context = context + alpha * torch.softmax(entropy.masked_fill(~tower.rows, LOWEST), -1)
    arrived = tower.arrive(context, ALWAYS)
    most = arrived.masked_fill(arrived == ALWAYS, 0.0).abs().amax(1, keepdim=True)
    return torch.where(arrived == ALWAYS, 1.0, arrived / most.clamp_min(TINY))


def _context(tower: TowerTap, threshold: float) -> Tensor:
    """Return c ``[I, N]``: the mean attention of the rows that receive most."""
    query = tower.layer.query
    every = tower.rows.new_ones(query.shape[0], query.shape[2])
    got = received(tower.layer, every, int(query.shape[2]), everyone=False)
    got = got.masked_fill(~tower.rows, 0.0)
    count = tower.rows.shape[1]
    level = threshold * got.sum(1, keepdim=True) / tower.rows.sum()
    most = min(max(int(count / max(threshold, 1.0)), 1), count)  # more cannot be above
    best = torch.sort(got, dim=1, descending=True, stable=True)[1].narrow(1, 0, most)
    above = got.gather(1, best) > level
    first = torch.arange(most, device=got.device) == 0
    holds = torch.where(above.any(1, keepdim=True), above.float(), first.float())
    attention = several(tower.layer, best).mean(1)
    return (attention * holds.unsqueeze(-1)).sum(1) / holds.sum(1, keepdim=True)


def _recycled(taps: Taps, importance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows kept as they are, the row of each cell that is made, and every row's cell."""
    places = taps.want_places("vflowopt")
    made = _made(taps)
    count = _cell_count(taps)
    kept = top_rows(importance, taps.candidates, taps.keep - made)
    rest = taps.candidates & ~kept & (places.tile >= 0)
    edge = _edge(taps)
    across = ceil(places.shape[2] / edge)
    cell = places.tile * _cells_of_a_tile(taps) + (places.column / edge).long()
    cell = torch.where(rest, cell + (places.row / edge).long() * across, -1)
    numbers = torch.arange(count, device=cell.device).unsqueeze(-1)
    member = cell.unsqueeze(1) == numbers
    mass = torch.where(member, importance.unsqueeze(1), 0.0).sum(-1)
    filled = _members(cell, rest, count) > 0
    chosen = top_rows(mass, filled, made)
    best = torch.where(member, importance.unsqueeze(1), LOWEST).argmax(-1)
    none = torch.zeros(cell.shape, device=cell.device)
    return kept, none.scatter_add(1, best, chosen.float()) > 0, cell


def _members(cell: Tensor, rows: Tensor, count: int) -> Tensor:
    numbers = torch.arange(count, device=cell.device).unsqueeze(-1)
    return ((cell.unsqueeze(1) == numbers) & rows.unsqueeze(1)).sum(-1)


def _made(taps: Taps) -> int:
    """Return m, how many rows are made of the lowest: none where nothing is dropped."""
    places = taps.want_places("vflowopt")
    wanted = int(places.shape[0] * places.shape[1] * places.shape[2] / _edge(taps) ** 2)
    return min(wanted, taps.keep, _cell_count(taps)) if taps.keep < taps.count else 0


def _edge(taps: Taps) -> float:
    places = taps.want_places("vflowopt")
    return max(_setting(taps, 4) * max(places.shape[1:]) / GRID, 1.0)


def _cells_of_a_tile(taps: Taps) -> int:
    places = taps.want_places("vflowopt")
    return ceil(places.shape[1] / _edge(taps)) * ceil(places.shape[2] / _edge(taps))


def _cell_count(taps: Taps) -> int:
    return taps.want_places("vflowopt").shape[0] * _cells_of_a_tile(taps)


def _setting(taps: Taps, column: int) -> float:
    """Return t (3) or a (4): as asked, or released for the share that S1 keeps."""
    asked = taps.options.get("t" if column == 3 else "a", "released")
    if asked != "released":
        return float(asked)
    return between(SHARES, 0, taps.keep / taps.count)[column]


def schedule(setting: Setting) -> tuple[Placement, ...]:
    """S1 in front of the decoder, S2 and S3 at its thirds."""
    shares = between(SHARES, 2, setting.keep / setting.count)[:3]
    depths = (round(third * setting.layers / 3) for third in range(3))
    return staged(setting, depths, (round(share * setting.count) for share in shares))


METHOD = Method(
    name="vflowopt",
    paper="arXiv:2508.05211",
    licence="CC BY-NC 4.0: non-commercial",
    cost="O(N²)",
    roles=frozenset({"decoder"}),
    score=score,
    schedule=schedule,
    needs=frozenset({"tower", "places"}),
    notes="what the tower's context rows attend to; three cuts; the first recycles by cells",
    options={"t": "released", "a": "released", "alpha": 0.0},
    tunes={"alpha": (0.5, 1.0)},
    combine=combine,
)
