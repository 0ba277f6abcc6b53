"""Methods that are a score and a schedule, under every gate on a tower and a decoder of the zoo."""

import pytest
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, failures, plan


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dino", "vision:2 fastervlm 12"),
        ("dino", "vision:2 fopru 12"),
        ("dino", "vision:2 hiprune 30"),
        ("dino", "vision:2 holov 12"),
        ("dino", "vision:1 lexrank 12"),
        ("dino", "vision:2 tokencut 12"),
        ("llava_dynamic", "vision:end hiprune 30, decoder:1 pdrop 18, decoder:3 pdrop 4"),
    ],
)
def test_a_plan_passes_every_gate(name: str, text: str) -> None:
    family = analysed(name)
    assert failures(checked(family, plan(text)), [every_input(family)[-1]]) == ""
