import math

import numpy as np
import pytest
from testsuite.passes.methods.chosen import greedily, items, order_of, with_rows
from testsuite.passes.methods.drawn_taps import drawn_taps

from tokopt.ir.errors import InputError
from tokopt.passes.methods.mmtok import METHOD


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(x - max(logits)) for x in logits]
    return [p / sum(powers) for p in powers]


def reference(
    rows: np.ndarray, candidates: list[int], steps: int, heat: float, cold: float, alpha: float
) -> list[int]:
    """F of every set that a step could make, from the formula."""
    asked = range(max(candidates) + 1, len(rows))
    words = [softmax([rows[t] @ rows[j] / heat for j in candidates]) for t in asked]
    tokens = [softmax([rows[i] @ rows[j] / cold for j in candidates]) for i in candidates]

    def covered(chosen: list[int], row: int) -> float:
        places = [candidates.index(j) for j in [*chosen, row]]
        text = sum(max(line[p] for p in places) for line in words) / len(words)
        image = sum(max(line[p] for p in places) for line in tokens) / len(tokens)
        return text + alpha * image

    return greedily(covered, candidates, steps)


@pytest.mark.parametrize("keep", [1, 4, 7])
@pytest.mark.parametrize("seed", range(4))
def test_each_next_token_covers_most(keep: int, seed: int) -> None:
    taps = drawn_taps("decoder", keep=keep, seed=seed)
    expected = [reference(*item, keep, 0.02, 0.2, 0.5) for item in items(taps)]
    assert order_of(METHOD.score(taps)) == expected


def test_temperatures_and_alpha_are_options() -> None:
    options = {"text_temperature": 0.3, "vision_temperature": 0.7, "alpha": 2.0}
    taps = drawn_taps("decoder", keep=6, seed=2, options=options)
    expected = [reference(*item, 6, 0.3, 0.7, 2.0) for item in items(taps)]
    assert order_of(METHOD.score(taps)) == expected


def test_two_words_with_two_answers_get_both_before_the_picture_is_covered() -> None:
    """Rows 0 to 2 are one cloud, row 3 and 4 answer one word each."""
    cloud = [[1.0, 0.0, 0.0], [1.0, 0.01, 0.0], [1.0, 0.0, 0.01]]
    words = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert sorted(order_of(METHOD.score(with_rows([*cloud, *words, *words], 2, text=2)))[0]) == [
        3,
        4,
    ]


@pytest.mark.parametrize("name", ["text_temperature", "vision_temperature"])
def test_a_temperature_of_zero_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        METHOD.score(drawn_taps("decoder", options={name: 0.0}))
