"""Pools: which rows are in them, and in which order."""

import torch

from tokopt.passes.kv.pools import parted, together


def test_rows_keep_their_order_and_ties_go_to_the_lower_row():
    salience = torch.ones(1, 2, 200)
    salience[0, 0, [190, 3]] = 2
    rows = torch.arange(200.0).expand(1, 2, -1).unsqueeze(-1)
    high, low = parted(rows, salience, 40)
    numbers = list(range(200))
    first = sorted([190, 3, *[n for n in numbers if n not in (3, 190)][:38]])
    assert high[0, 0, :, 0].tolist() == first
    assert high[0, 1, :, 0].tolist() == numbers[:40]
    assert low[0, 0, :, 0].tolist() == [n for n in numbers if n not in first]
    assert torch.equal(together(rows, salience, 40), torch.cat([high, low], 2))
