"""Four families, real methods: identity, and the oracle with the rows it chose, per plan."""

from __future__ import annotations

import pytest
from testsuite.exhaustive import thinned
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, plan, rewritten, verdicts

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.tolerances import IDENTITY, ORACLE

pytestmark = pytest.mark.slow

LLAVA = [
    "vision:1 flowcut 18",
    "vision:1 vtc_cls 4",
    "vision:end vtc_cls 4",
    "decoder:2 fastv 18",
    "decoder:1 fastv 4",
    "vision:1 flowcut 18, decoder:2 fastv 4",
    "vision:1 flowcut 18, vision:end flowcut 4",
    "decoder:1 fastv 18, decoder:3 random 4",
    "vision:1 random 20, vision:end vtc_cls 12, decoder:0 stride 8, decoder:2 fastv 4",
]
PLANS = {
    "llava": LLAVA,
    "llava_explicit": [LLAVA[0], LLAVA[4], LLAVA[5], LLAVA[8]],
    "llava_dynamic": [LLAVA[6], LLAVA[8]],
    "qwen": [
        "vision:3 random 48",
        "vision:1 divprune 64, vision:2 stride 32",
        "vision:3 stride 8",
        "vision:end stride 8",
        "decoder:2 fastv 12",
        "vision:3 stride 48, decoder:2 fastv 2",
        "vision:3 random 48, vision:end flowcut 8",
        "decoder:1 stride 12, decoder:3 fastv 2",
    ],
    "dino": [
        "vision:2 flowcut 18",
        "vision:2 vtc_cls 4",
        "vision:0 stride 18, vision:3 flowcut 4",
        "vision:1 flowcut 18, vision:end vtc_cls 4",
    ],
    "handvit": [
        "vision:2 vtc_cls 18",
        "vision:2 flowcut 4",
        "vision:0 random 18, vision:3 flowcut 4",
        "vision:1 flowcut 18, vision:3 flowcut 4",
    ],
}


@pytest.mark.parametrize(
    ("name", "text"), thinned([(n, t) for n, texts in PLANS.items() for t in texts], 4)
)
def test_keeping_all_is_the_original_and_dropping_is_the_masked_oracle(
    name: str, text: str
) -> None:
    family = analysed(name)
    inputs = every_input(family)  # dynamic: batch 3, another prompt length
    found = verdicts(rewritten(name, text), [inputs[3 if name == "llava_dynamic" else 0]])
    assert not [v for v in found if not v.passed]
    limits = {"identity": 1e-6, "oracle": 1e-4}
    assert (IDENTITY, ORACLE) == tuple(limits.values())
    for verdict in found:
        if verdict.gate in limits:
            assert verdict.max_difference is not None
            assert verdict.max_difference <= limits[verdict.gate]


def test_windows_of_different_sizes_are_barriers_that_name_the_attention() -> None:
    with pytest.raises(UnsupportedError, match="scaled_dot_product_attention") as error:
        checked(analysed("qwen_uneven"), plan("vision:0 stride 48"))
    assert "16 rows" in str(error.value) and "vision:1" in str(error.value)


def test_rows_leave_in_whole_windows_and_behind_them_in_whole_groups_before_a_merger() -> None:
    family = analysed("qwen")
    assert [s.group for s in family.stack("vision").sites if s.legal] == [16, 16, 16, 4, 4]
    with pytest.raises(UnsupportedError, match="groups of 16"):
        checked(family, plan("vision:2 stride 44"))
    with pytest.raises(UnsupportedError, match="groups of 4"):
        checked(family, plan("vision:3 stride 46"))
