"""Every model of the zoo: exported as it is, rewritten and verified where that is legal.

``BARRED`` is the whole list of what is not possible, with its reason: a model that begins to
compile, or stops, shows here first.
"""

import functools
from collections.abc import Mapping

import pytest
from testsuite.exhaustive import by_default
from testsuite.zoo import judge, registry
from testsuite.zoo.sample import Sample

from tokopt.ir.facts import Facts, analyse
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.normalize import normalize

TOLERANCE = 1e-5
ELSEWHERE = {"llava", "qwen2_5_vl", "dinov2", "handvit"}
"""Models whose rewrites have laws of their own; here they are exported only."""

SORTED = "sorts rows by value"
BARRED: Mapping[str, Mapping[str, str]] = {
    "got_ocr2": {"vision": "a convolution combines neighbouring rows"},
    "toc3d": {"vision2": SORTED, "vision3": "reduces 36 rows that were regrouped by position"},
    "tokenflex": {"vision": "combines neighbouring rows"},  # 6 rows into 4: windows overlap
}
"""Model -> role -> words of the reason why no site of that stack is legal."""

NAMES = registry.names()
COMPILED = sorted(set(NAMES) - ELSEWHERE)
DEFAULT = frozenset(NAMES[::4])
"""The models of the default run: one in four is exported."""


@functools.cache
def built(name: str) -> Sample:
    return registry.make(name)


@functools.cache
def facts(name: str) -> Facts:
    return analyse(normalize(built(name).exported))


@pytest.mark.parametrize("name", by_default(NAMES, DEFAULT.__contains__))
def test_the_exported_program_equals_the_eager_model(name: str) -> None:
    assert len(built(name).all_inputs) >= 2
    assert max(judge.differences(built(name))) <= TOLERANCE


@pytest.mark.parametrize("name", by_default(COMPILED, DEFAULT.__contains__))
def test_every_stack_that_has_no_legal_site_is_listed_with_its_reason(name: str) -> None:
    found = {
        stack.role: str(stack.sites[-1].barrier)
        for stack in facts(name).stacks
        if not any(site.legal for site in stack.sites)
    }
    listed = BARRED.get(name, {})
    assert found.keys() == listed.keys()
    assert {role: text for role, text in listed.items() if text not in found[role]} == {}


@pytest.mark.parametrize("name", by_default(COMPILED, DEFAULT.__contains__))
def test_half_of_the_rows_leave_and_the_oracle_agrees(name: str) -> None:
    places = judge.chosen_places(facts(name))
    if not places:
        assert name in BARRED
        return
    where = list(places)[-1]
    plan = functools.partial(judge.strided, places[where], 0.5)
    inputs = judge.named(built(name), built(name).all_inputs[-1])
    found = judge.attempt(facts(name), plan, inputs, [])
    assert found["identity"] == 0.0
    assert isinstance(found["oracle"], float) and found["oracle"] <= 1e-5, found


def test_stages_stand_on_both_sides_of_a_regrouping_that_needs_every_row() -> None:
    """Between Mllama's two encoders rows are regrouped by tile, all of them, and back."""
    stages = [
        Stage(f"vision:{depth}", "flowcut", keep) for depth, keep in ((1, 74), (2, 63), (3, 18))
    ]
    found = judge.attempt(
        facts("mllama"),
        lambda: Plan(tuple(stages)),
        judge.named(built("mllama"), built("mllama").all_inputs[-1]),
        [],
    )
    assert found["identity"] == 0.0
    assert isinstance(found["oracle"], float) and found["oracle"] <= 1e-5, found


def test_a_model_is_added_by_a_file_with_a_builder() -> None:
    assert {"llava", "handvit", "whisper", "sparsifiner"} <= set(NAMES)
    assert not {"registry", "tiny", "sample", "weights", "judge", "table"} & set(NAMES)
    assert registry.summary("handvit").startswith("A hand-written ViT")
