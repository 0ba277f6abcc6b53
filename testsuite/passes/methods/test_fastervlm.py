import numpy as np
import pytest
from testsuite.passes.analysed import analysed
from testsuite.passes.methods.drawn_taps import drawn_taps
from testsuite.passes.methods.kept_rows import kept_rows
from testsuite.passes.methods.llava_attention import truth

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.methods.fastervlm import METHOD
from tokopt.passes.methods.method import Setting


def test_the_score_is_the_class_row_of_the_last_layer_averaged_over_heads() -> None:
    taps = drawn_taps(layers=3)
    layer = taps.layers[-1]
    query, key = layer.query.numpy().astype(float), layer.key.numpy().astype(float)
    for item in range(2):
        expected = np.zeros(14)
        for head in range(4):
            weights = np.exp([query[item, head, 0] @ k * layer.scale for k in key[item, head // 2]])
            expected += weights / weights.sum() / 4
        np.testing.assert_allclose(METHOD.score(taps)[item].numpy(), expected, rtol=2e-5)


def test_a_tower_without_class_token_is_refused_with_a_way_out() -> None:
    with pytest.raises(UnsupportedError, match="class token") as error:
        METHOD.score(drawn_taps(relay=None))
    assert "fopru" in str(error.value)


def test_a_site_with_no_layer_before_it_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no layer lies before"):
        METHOD.score(drawn_taps(layers=0))


def test_the_published_stage_is_at_the_end() -> None:
    (place,) = METHOD.schedule(Setting("vision", 23, 576, 58))
    assert (place.depth, place.keep) == (23, 58)


@pytest.mark.parametrize("keep", [1, 9, 20, 35])
def test_kept_tokens_are_those_of_the_eager_attention(keep: int) -> None:
    taps = analysed("llava").observed().stacks["vision"].taps("vision:end", keep)
    expected = truth().tower[2][:, :, 0, :].mean(1)
    allowed = taps.candidates.numpy()
    assert kept_rows(METHOD.score(taps).numpy(), allowed, keep) == kept_rows(
        expected, allowed, keep
    )
