"""No claim of the table is idle: a sample whose claims of one kind are left out breaks a law."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from testsuite.ir.rules.every import SAMPLES
from testsuite.ir.rules.law import Claim, claim, violations

from tokopt.ir.call import Call

KINDS: dict[str, Callable[[Claim], set[tuple[int, int]]]] = {
    "fold": lambda c: {(c.operands.index(o), d) for o, d in c.uses.folds},
    "pick": lambda c: {(c.operands.index(p.operand), p.dim) for p in c.uses.picks},
    "move": lambda c: {(c.operands.index(m.operand), m.dim) for m in c.uses.moves},
    "mix": lambda c: {(c.operands.index(m.operand), m.dim) for m in c.uses.mixes},
}
WHOLE = ("split", "chunk")
"""Operators whose ranges cover all rows: their parts are linked, so each is said twice."""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_leaving_out_what_a_rule_says_breaks_a_law(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle, tried = [], 0
    for sample in SAMPLES:
        said = claim(sample)
        if sample.random or not any(said.tensors[o].shape[d] > 1 for o, d in KINDS[kind](said)):
            continue
        tried += 1
        with monkeypatch.context() as patch:
            patch.setattr(Call, kind, lambda *args, **kwargs: None)
            if violations(sample) == []:
                idle.append(str(sample))
    assert tried > 20
    said_twice = WHOLE if kind == "pick" else ("view.dtype",)  # of wider numbers, row for row
    assert [text for text in idle if not any(word in text for word in said_twice)] == []
