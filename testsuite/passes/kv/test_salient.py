"""Salience tapped at attention, against the whole matrix in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokopt.passes.kv.salient import attended, probes


@pytest.mark.parametrize(("rows", "wanted"), [(7, [3, 6]), (45, [7, 21, 35, 42, 43, 44])])
def test_a_tenth_of_the_rows_are_probes_half_of_them_the_last(rows: int, wanted: list[int]) -> None:
    assert probes(rows).tolist() == wanted


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "float", "padded"])
@pytest.mark.parametrize("repeated", [False, True])
def test_it_is_the_mean_of_the_probes_that_see_a_row(kind: str, repeated: bool) -> None:
    count, heads, group, width = 45, 2, 3, 8
    drawn = torch.Generator().manual_seed(3)
    query = torch.randn(2, heads * group, count, width, generator=drawn)
    keys = torch.randn(2, heads, count, width, generator=drawn)
    seen = torch.ones(2, 1, count, count, dtype=torch.bool)
    if kind != "none":
        seen = seen.tril()
    if kind == "padded":  # the second item begins late, its first rows see nothing
        seen[1, :, :, :9] = False
    bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    mask = {"bool": seen, "padded": seen, "float": bias}.get(kind)
    given = keys.repeat_interleave(group, 1) if repeated else keys
    how = {"heads": heads, "scale": 0.3, "causal": kind == "causal"}
    found = attended(query, given, mask, probes(count), **how)

    wanted = np.zeros((2, heads, count))
    for item, head, row in np.ndindex(2, heads, count):
        for one in range(group):
            shares, viewers = 0.0, 0
            for probe in probes(count).tolist():
                open_rows = seen[item, 0, probe].numpy()
                if not open_rows[row]:
                    continue
                viewers += 1
                q, k = query[item, head * group + one, probe].double(), keys[item, head].double()
                logits = (k @ q * 0.3).numpy()[open_rows]
                weights = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
                shares += weights[np.flatnonzero(open_rows).tolist().index(row)]
            wanted[item, head, row] += shares / max(viewers, 1) / group
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-7)
