"""Every method on every family where it is illegal: what is missing, and what would do. About 8 s.

What a hint names is tried: each of those methods can be placed there.
"""

import re

import pytest
from testsuite.passes.analysed import analysed

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.fit import fit
from tokopt.passes.instead import instead
from tokopt.passes.methods.about import needs_in_words
from tokopt.passes.methods.registry import METHODS

FAMILIES = ("llava", "qwen", "dino")
"""A class token and pixels; neither, and rows in groups; no text."""
TAPS = ("class token", "tower", "reads", "where in the image", "rows leave in groups", "legal site")


def refusal(family: str, name: str, role: str | None) -> UnsupportedError | None:
    try:
        fit(analysed(family).facts, METHODS[name], 0.6, role=role)
    except UnsupportedError as error:
        return error
    return None


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_refusal_names_what_is_missing_and_what_would_do(family: str, name: str) -> None:
    for role in (None, *(stack.role for stack in analysed(family).facts.stacks)):
        error = refusal(family, name, role)
        if error is None:
            continue
        assert name in str(error) or "where in the image" in error.what
        assert any(tap in str(error) for tap in TAPS)
        assert error.hint or "a legal site:" in str(error.expected)
        if "is not made for" in error.what or "no stack" in error.what:
            assert all(word in error.what for word in needs_in_words(METHODS[name]))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_hint_names_can_be_placed_there(family: str) -> None:
    for stack in analysed(family).facts.stacks:
        found = re.fullmatch(r"(.+) can be placed in (.+)", instead(stack.role))
        assert found is not None and found[2] == stack.role
        names = found[1].split(", ")
        assert len(names) >= 2 and not {"random", "stride", "downsample"} & set(names)
        assert [n for n in names if refusal(family, n, stack.role) is not None] == []


def test_methods_that_read_a_class_token_are_refused_where_there_is_none() -> None:
    for name in ("fastervlm", "holov", "visionzip", "vtc_cls"):
        error = refusal("qwen", name, None)
        assert error is not None and "no class token" in error.what
        assert "divprune" in str(error.hint)
