"""Rewrites of attention as they are written on a command line. About 2 s."""

import pytest
from testsuite.passes.analysed import analysed

from tokopt.ir.errors import TokoptError
from tokopt.ir.plan import Attending
from tokopt.passes.rewrites.asked import asked_attention

FACTS = analysed("llava").facts


def test_a_name_alone_begins_at_its_published_layer_scaled_to_the_depth() -> None:
    assert asked_attention(FACTS, "var") == (Attending("decoder:1", "var"),)


def test_options_and_the_site_are_read_as_what_they_are() -> None:
    (entry,) = asked_attention(FACTS, 'var{p=0.5 dims="1,3" site=decoder:2}')
    assert entry == Attending("decoder:2", "var", {"p": 0.5, "dims": "1,3"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rewrite of attention is named"),
        ("fastv", "no rewrite of attention 'fastv'"),
        ("var{q=0.6}", "var has no option 'q'"),
        ("var{p=high}", "var: p = 'high'"),
        ("var{p=[1 2]}", "p is a list or a table"),
        ("var{p", "the end of the text"),
    ],
)
def test_what_is_not_known_is_refused(text: str, message: str) -> None:
    with pytest.raises(TokoptError, match=message):
        asked_attention(FACTS, text)


def test_a_model_without_decoder_has_no_attention_to_rewrite() -> None:
    with pytest.raises(TokoptError, match="this model has none"):
        asked_attention(analysed("handvit").facts, "var")


def test_reuse_begins_at_the_first_layer_of_the_tower_that_feeds_the_decoder() -> None:
    assert asked_attention(FACTS, "stc_cacher") == (Attending("vision:0", "stc_cacher"),)
    (entry,) = asked_attention(FACTS, "stc_cacher{share=0.5 every=4 site=vision:1}")
    assert entry == Attending("vision:1", "stc_cacher", {"share": 0.5, "every": 4})
    alone = asked_attention(analysed("dino_short").facts, "stc_cacher")
    assert alone == (Attending("vision:0", "stc_cacher"),)
