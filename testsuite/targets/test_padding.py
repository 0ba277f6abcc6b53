from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.targets.padding import Cropped, Filled, Padding
from tokopt.targets.parts import bucket_part

PADDING = Padding((4, 6), (Filled("ids", 1, 7), Filled("mask", 0, 0)), (Cropped("out", 1),))


def given(length: int) -> dict[str, Tensor]:
    return {"ids": torch.ones(2, length).long(), "mask": torch.ones(length), "other": torch.ones(3)}


@pytest.mark.parametrize(("length", "bucket"), [(1, 4), (4, 4), (5, 6), (6, 6)])
def test_the_smallest_bucket_that_fits_runs_a_padded_prompt(length: int, bucket: int) -> None:
    opened: list[int] = []

    def opener(size: int):  # type: ignore[no-untyped-def]
        opened.append(size)

        def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            assert inputs["ids"].shape == (2, size) and inputs["mask"].shape == (size,)
            assert bool((inputs["ids"][:, length:] == 7).all())
            assert inputs["mask"].tolist() == [1] * length + [0] * (size - length)
            assert inputs["other"].shape == (3,)
            return {"out": torch.arange(size - 1).expand(2, -1), "logit": torch.ones(2)}

        return run

    run = PADDING.runner(opener)
    for _ in range(2):
        outputs = run(given(length))
        assert outputs["out"].tolist() == [list(range(length - 1))] * 2
        assert outputs["logit"].shape == (2,)
    assert opened == [bucket]


def test_a_prompt_longer_than_all_buckets_is_refused_naming_the_largest() -> None:
    with pytest.raises(InputError, match="a prompt of 7 rows") as error:
        PADDING.bucket(given(7))
    assert "at most 6" in str(error.value.expected)


def test_the_shortest_bucket_has_the_name_of_its_budget() -> None:
    names = [bucket_part(part, b, (4, 6)) for part in ("", "-0.1") for b in (4, 6)]
    assert names == ["", "-p6", "-0.1", "-0.1-p6"]
