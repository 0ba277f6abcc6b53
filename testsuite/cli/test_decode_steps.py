"""Steps that are timed: each goes on with the cache of the last, now and then from the prompt's."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from tokopt.cli.decode_steps import STEPS, steps_of
from tokopt.ir.cache import Cache
from tokopt.ir.decoding import Decoding


@pytest.mark.parametrize("mask", [None, "seen"])
def test_a_step_takes_the_caches_that_the_last_one_gave(mask: str | None) -> None:
    how = Decoding(
        "decode", "ids", "logits", "token", None, "next",
        (Cache("past", "present", 2, whole=True),), mask=mask,
    )  # fmt: skip
    rows = list[tuple[int, int]]()

    def run(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rows.append((given["past"].shape[2], given["seen"].shape[1]))
        return {"present": torch.cat([given["past"], given["past"][:, :, :1]], 2)}

    given = {"past": torch.zeros(1, 2, 5, 4), "seen": torch.ones(1, 6)}
    step = steps_of(run, given, how)
    for _ in range(STEPS + 2):
        step()
    told = [6 + i if mask else 6 for i in range(STEPS)]
    assert rows == [*zip(range(5, 5 + STEPS), told, strict=True), (5, 6), (6, told[1])]
    assert given["past"].shape[2] == 5
