import numpy as np
import pytest
from testsuite.passes.analysed import analysed
from testsuite.passes.methods.drawn_taps import drawn_taps
from testsuite.passes.methods.kept_rows import kept_rows
from testsuite.passes.methods.llava_attention import truth

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.methods.fastv import METHOD
from tokopt.passes.methods.method import Setting


def test_the_score_is_the_last_row_of_the_nearest_layer_averaged_over_heads() -> None:
    taps = drawn_taps("decoder", layers=3)
    layer = taps.layers[-1]
    query, key = layer.query.numpy(), layer.key.numpy()
    for item in range(2):
        expected = np.zeros(14)
        for head in range(4):
            weights = np.exp(
                [query[item, head, 13] @ k * layer.scale for k in key[item, head // 2]]
            )
            expected += weights / weights.sum() / 4
        np.testing.assert_allclose(METHOD.score(taps)[item].numpy(), expected, rtol=2e-5)


@pytest.mark.parametrize(
    ("layers", "depth"), [(32, 2), (28, 2), (40, 2), (48, 3), (16, 1), (4, 1), (1, 1)]
)
def test_the_stage_enters_layer_two_of_thirty_two(layers: int, depth: int) -> None:
    (place,) = METHOD.schedule(Setting("decoder", layers, 576, 100, consumer=True))
    assert (place.depth, place.keep) == (depth, 100)


def test_a_site_with_no_layer_before_it_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no layer lies before"):
        METHOD.score(drawn_taps("decoder", layers=0))


@pytest.mark.parametrize("model", ["llava", "llava_explicit", "llava_dynamic"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("keep", [1, 9, 18, 35])
def test_kept_tokens_are_those_of_the_eager_attention(model: str, depth: int, keep: int) -> None:
    """Visual rows lie elsewhere in each item; HF's last-token attention says which stay."""
    seen = analysed(model).observed().stacks["decoder"]
    taps = seen.taps(f"decoder:{depth}", keep)
    expected = truth().decoder[depth - 1][:, :, -1, :].mean(1)
    assert np.array_equal(taps.candidates.numpy(), truth().visual)
    assert kept_rows(METHOD.score(taps).numpy(), truth().visual, keep) == kept_rows(
        expected, truth().visual, keep
    )
