import numpy as np
import pytest
from testsuite.passes.methods.chosen import items, order_of
from testsuite.passes.methods.drawn_taps import drawn_taps

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.methods.dart import METHOD
from tokopt.passes.methods.method import Setting, Taps


def reference(taps: Taps, takes: list[int]) -> list[set[int]]:
    """Pivots by the 1-norm of their keys; each sorts what is left and takes the least alike."""
    result = []
    keys = taps.layers[-1].key.double().numpy()
    for item, (rows, candidates) in enumerate(items(taps)):
        size = np.abs(keys[item].transpose(1, 0, 2).reshape(len(rows), -1)).sum(1)
        text = [row for row in range(max(candidates) + 1, len(rows))]
        visual = sorted(candidates, key=lambda row: -size[row])[:4]
        words = sorted(text, key=lambda row: -size[row])[:4]
        words = [words[n % len(words)] for n in range(4)]
        left = [row for row in candidates if row not in visual]
        for pivot, count in zip([*visual, *words], takes, strict=True):
            left.sort(key=lambda row: rows[row] @ rows[pivot])
            left = left[count:]
        result.append(set(candidates) - set(left))
    return result


@pytest.mark.parametrize(
    ("keep", "takes"),
    [(4, [0] * 8), (12, [1] * 8), (20, [2] * 8), (36, [4] * 8), (8, [1, 0, 1, 0, 1, 0, 1, 0])],
)
@pytest.mark.parametrize("seed", range(3))
def test_pivots_stay_and_take_the_least_alike_in_turn(
    keep: int, takes: list[int], seed: int
) -> None:
    taps = drawn_taps("decoder", rows=60, keep=keep, seed=seed, layers=2)
    found = [set(rows) for rows in order_of(METHOD.score(taps))]
    assert found == reference(taps, takes)
    assert all(len(rows) == keep for rows in found)


def test_fewer_than_four_tokens_are_the_largest_pivots() -> None:
    taps = drawn_taps("decoder", keep=2, layers=1)
    size = taps.layers[0].key.abs().sum((1, 3))
    expected = [
        sorted(rows, key=lambda row: -float(size[item, row]))[:2]
        for item, (_, rows) in enumerate(items(taps))
    ]
    assert order_of(METHOD.score(taps)) == expected


def test_a_site_with_no_layer_before_it_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no layer lies before"):
        METHOD.score(drawn_taps("decoder", layers=0))


@pytest.mark.parametrize(("layers", "depth"), [(32, 2), (28, 2), (4, 1)])
def test_the_stage_enters_layer_two_of_thirty_two(layers: int, depth: int) -> None:
    (place,) = METHOD.schedule(Setting("decoder", layers, 576, 100, consumer=True))
    assert (place.depth, place.keep) == (depth, 100)
