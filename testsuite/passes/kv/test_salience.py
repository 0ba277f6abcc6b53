"""Salience against a loop over the attention matrix."""

import numpy as np
import pytest
import torch

from tokopt.ir.errors import InputError
from tokopt.passes.kv.salience import probe_rows, probed_salience, text_salience


def test_it_is_the_mean_attention_from_the_probes_that_see_a_row():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 4, 12, 8, generator=generator)
    keys = torch.randn(2, 2, 12, 8, generator=generator)
    for probes in ([2, 7, 11], list(range(12))):  # all rows: the paper's exact measure
        found = probed_salience(queries[:, :, probes], keys, torch.tensor(probes), 0.5)
        wanted = np.zeros((2, 2, 12))
        for item, head, row in np.ndindex(2, 2, 12):
            got = []
            for probe in probes:
                if probe >= row:
                    for query in queries[item, 2 * head : 2 * head + 2, probe].tolist():
                        seen = keys[item, head, : probe + 1].numpy() @ query * 0.5
                        got.append(np.exp(seen[row]) / np.exp(seen).sum())
            wanted[item, head, row] = np.mean(got)
        assert np.allclose(found.numpy(), wanted, atol=1e-6)


def test_late_rows_are_not_raised_by_being_late():
    """With equal attention everywhere the released code's divisor raises the last tenfold."""
    probes = probe_rows(4096)
    flat = torch.zeros(1, 1, len(probes), 4), torch.zeros(1, 1, 4096, 4)
    found = probed_salience(*flat, probes, 1.0)[0, 0]
    assert found[-100:].mean() < found[:100].mean()
    released = found * (torch.arange(4096)[None] <= probes[:, None]).sum(0)
    released = released / torch.arange(4096, 0, -1)
    assert released[-100:].mean() > 3 * released[:100].mean()


def test_probes_are_the_last_rows_and_as_many_drawn_ones():
    found = probe_rows(400)
    assert len(found) == 40 and found[20:].tolist() == list(range(380, 400))
    assert len(set(found.tolist())) == 40 and found.tolist() == sorted(found.tolist())
    assert torch.equal(found, probe_rows(400)) and not torch.equal(found, probe_rows(400, seed=1))
    assert probe_rows(1).tolist() == [0]
    with pytest.raises(InputError, match="no probes"):
        probe_rows(0)
    with pytest.raises(InputError, match="probe queries"):
        probed_salience(torch.zeros(1, 3, 1, 4), torch.zeros(1, 2, 9, 4), torch.tensor([8]), 1.0)


def test_salience_by_text_is_the_mean_product_with_the_text():
    hidden = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    text = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 1]]).bool()
    found = text_salience(hidden, text, 3)
    wanted = [float(hidden[1, 2] @ hidden[1, row]) for row in (0, 5)]
    assert found.shape == (2, 3, 6)
    assert found[1, 2, 2] == pytest.approx(sum(wanted) / 2, abs=1e-5)
