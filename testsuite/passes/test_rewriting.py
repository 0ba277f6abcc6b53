"""Attention that is another: every gate passes, and a rewrite that is wrong does not."""

from __future__ import annotations

import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, plan, verdicts
from torch import Tensor

from tokopt.ir.errors import InputError, TokoptError, UnsupportedError
from tokopt.ir.plan import Attending, Plan
from tokopt.passes import rewriting
from tokopt.passes.rewriting import asked_rewrites
from tokopt.passes.validate import run_program

VAR = "decoder:1 var tau=2.5 summ=0.01 rho=0.2 p=0.3"


def failed(name: str, text: str) -> set[str]:
    family = analysed(name)
    found = verdicts(checked(family, plan(text)), every_input(family)[:1])
    return {verdict.gate for verdict in found if not verdict.passed}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llava_dynamic", f"{VAR}, decoder:1 fastv 12, decoder:3 dart 6"),
        ("llava_explicit", f"{VAR}, vision:2 stride 9"),
        ("llava_explicit", "decoder:0 paint, decoder:2 fastv 9"),
    ],
)
def test_a_rewrite_beside_stages_passes_every_gate(name: str, text: str) -> None:
    assert failed(name, text) == set()


def test_a_rewrite_changes_rows_behind_the_image_alone() -> None:
    family = analysed("llava")
    inputs = every_input(family)[0]
    (before, *_), (after, *_) = (
        run_program(exported, inputs)
        for exported in (
            family.facts.exported,
            checked(family, plan(VAR)).applied.exported,
        )
    )
    changed = (before - after).abs().amax((0, 2))
    stack = family.stack("decoder")
    assert isinstance(stack.count, int)
    front = len(changed) - int((changed > 1e-3).sum())
    assert stack.count <= front < len(changed)
    assert bool((changed[:front] == 0).all()) and bool((changed[front:] > 1e-3).all())


def test_fused_attention_is_rewritten_without_a_square_of_rows() -> None:
    """What is inserted has no value with two dims of all rows, as the weights would have."""
    family = analysed("llava")
    before = family.facts.exported
    rows = run_program(before, every_input(family)[0])[0].shape[1]
    known = {node.name for node in before.graph.nodes}
    after = checked(family, plan(VAR)).applied.exported.graph.nodes
    added = [n for n in after if n.name not in known and isinstance(n.meta.get("val"), Tensor)]
    calls = [n for n in added if "scaled_dot_product_attention" in str(n.target)]
    layers = len(family.stack("decoder").stack.layers) - 1
    assert len(calls) == 3 * layers  # the masses, and what is read at sinks and at other tokens
    assert not [n for n in added if list(n.meta["val"].shape).count(rows) > 1]


def seeded_faults() -> dict[str, tuple[str, str, object]]:
    """What is put in the place of a part of the rewriter, and the plan that meets it."""
    original, calls = rewriting._rewrite, []

    def forgetful(*given: object) -> None:
        calls.append(given)
        if len(calls) % 3 != 2:  # the second layer of three
            original(*given)  # type: ignore[arg-type]

    def behind(candidates: Tensor) -> Tensor:
        return torch.cat([~candidates[:, 1:] & False, candidates[:, :1] | True], 1)

    mixed = rewriting._mixed

    ask = rewriting.ask_again

    def swapped(*given):  # type: ignore[no-untyped-def]
        masses, sinks, others = ask(*given)
        return [masses, others, sinks]

    def turned(weights: Tensor, value: Tensor) -> Tensor:
        return mixed(weights, value.roll(1, 1))

    return {
        "a layer is left out": (VAR, "_rewrite", forgetful),
        "only the last row": (VAR, "rows_behind", behind),
        "the sums of other keys": (VAR, "ask_again", swapped),
        "another head's values": ("decoder:1 paint", "_mixed", turned),
        "the row before the last": (
            "decoder:1 paint",
            "last_rows",
            lambda tap: torch.full((tap.query.shape[0], 1), tap.query.shape[2] - 2),
        ),
    }


@pytest.mark.parametrize("fault", seeded_faults())
def test_a_wrong_rewrite_fails_the_oracle(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, name, instead = seeded_faults()[fault]
    monkeypatch.setattr(rewriting, name, instead)
    assert "oracle" in failed("llava", text)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("vision:1 var", UnsupportedError, "cannot rewrite the attention of vision"),
        ("decoder:1 var, decoder:2 paint", InputError, "rewritten twice"),
        ("decoder:1 fastv", InputError, "no rewrite of attention 'fastv'"),
        ("decoder:1 paint, vision:2 stride 9", UnsupportedError, "reads the whole tower"),
    ],
)
def test_what_cannot_be_rewritten_is_refused(
    text: str, kind: type[TokoptError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        asked_rewrites(analysed("llava").facts, plan(text))


def test_a_plan_says_what_is_rewritten() -> None:
    wanted = Plan((), attention=(Attending("decoder:2", "var", {"p": 0.5, "dims": "1,2"}),))
    text = wanted.to_toml()
    assert text.endswith(
        '[[attention]]\nsite = "decoder:2"\nmethod = "var"\noptions.dims = "1,2"\noptions.p = 0.5\n'
    )
    assert Plan.from_toml(text) == wanted
    with pytest.raises(InputError, match="keep"):
        Plan.from_toml(text + "keep = 3\n")
