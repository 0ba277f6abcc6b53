"""What `tokopt methods` says of each method; what it costs is counted in test_cost_classes."""

import pytest

from tokopt.passes.methods.about import NEEDS, needs_in_words, scope
from tokopt.passes.methods.method import COSTS
from tokopt.passes.methods.registry import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_every_method_states_paper_licence_scope_and_cost(name: str) -> None:
    method = METHODS[name]
    assert method.paper and method.licence and method.notes
    assert method.cost in COSTS
    assert scope(method) and method.needs <= {*NEEDS, "relay"}
    assert len(needs_in_words(method)) >= len(method.needs)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("fastervlm", ("vision",)),
        ("divprune", ("vision", "merge boundary")),
        ("fastv", ("LLM",)),
        ("vflowopt", ("merge boundary", "LLM")),
        ("stride", ("vision", "resampler", "merge boundary")),
    ],
)
def test_scope_is_where_the_published_stages_lie(name: str, places: tuple[str, ...]) -> None:
    assert scope(METHODS[name]) == places


def test_a_relay_is_called_what_it_is_where_the_method_is_placed() -> None:
    assert needs_in_words(METHODS["fastervlm"]) == ("attention", "the class token")
    assert needs_in_words(METHODS["fastv"]) == ("attention", "the last prompt row")
    assert needs_in_words(METHODS["stc"])[-1] == "what it kept of earlier calls"
