"""Four families through AOTInductor, one compilation each: rows kept and outputs as the oracle."""

from __future__ import annotations

import pytest
from testsuite.exhaustive import by_default
from testsuite.passes.families import every_input, lowered

from tokopt.cli.target_gate import against_target
from tokopt.targets.registry import find

WHY_NOT = find("aotinductor").available()
PLANS = {  # of few layers: what a compilation costs is the number of kernels it writes
    "llava_short": "vision:1 todre 18, decoder:1 fastv 4",
    "qwen_short": "vision:1 stride 48, decoder:1 fastv 2",
    "dino_short": "vision:1 flowcut 18, vision:2 vtc_cls 4",
    # todre chooses in a loop: the default run has one in machine code
    "handvit_short": "vision:1 todre 18, vision:2 flowcut 4",
}


@pytest.mark.slow
@pytest.mark.needs_cxx
@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
@pytest.mark.parametrize("name", by_default(PLANS, lambda name: name == "handvit_short"))
def test_machine_code_keeps_the_rows_and_computes_the_outputs_of_the_oracle(name: str) -> None:
    done = lowered(name, PLANS[name], "aotinductor")
    for given in every_input(done.family)[:2]:
        verdicts = list(
            against_target(done.target, done.folder, done.checked, done.program, given, done.names)
        )
        assert [v for v in verdicts if not v.passed] == []
