import numpy as np
import pytest
from testsuite.passes.methods.chosen import greedily, items, order_of, with_rows
from testsuite.passes.methods.drawn_taps import drawn_taps

from tokopt.ir.errors import InputError
from tokopt.passes.methods.cdpruner import METHOD


def reference(rows: np.ndarray, candidates: list[int], steps: int, sign: int) -> list[int]:
    """The largest determinant of the kernel's chosen rows and columns, computed each time."""
    asked = range(max(candidates) + 1, len(rows))
    raw = {j: sign * np.mean([rows[j] @ rows[t] for t in asked]) for j in candidates}
    low, high = min(raw.values()), max(raw.values())
    relevance = {j: (r - low + 1e-6) / (high - low) for j, r in raw.items()}

    def determinant(chosen: list[int], row: int) -> float:
        picked = [*chosen, row]
        kernel = [
            [relevance[a] * (rows[a] @ rows[b]) * relevance[b] for b in picked] for a in picked
        ]
        return float(np.linalg.det(np.array(kernel)))

    return greedily(determinant, candidates, steps)


@pytest.mark.parametrize("compat", ["paper", "code"])
@pytest.mark.parametrize("keep", [1, 4, 7])
@pytest.mark.parametrize("seed", range(4))
def test_each_next_token_makes_the_determinant_largest(compat: str, keep: int, seed: int) -> None:
    taps = drawn_taps("decoder", keep=keep, seed=seed, options={"compat": compat})
    sign = -1 if compat == "code" else 1
    expected = [reference(*item, keep, sign) for item in items(taps)]
    assert order_of(METHOD.score(taps)) == expected


def test_a_copy_waits_for_a_relevant_token_that_is_new() -> None:
    """The question points east; rows 0 and 1 answer it alike, row 2 half, row 3 not at all."""
    rows = [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.87, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    assert order_of(METHOD.score(with_rows(rows, 2, text=1))) == [[0, 2]]


def test_without_text_only_difference_counts() -> None:
    rows = [[1.0, 0.0], [2.0, 0.1], [0.0, 3.0]]
    assert order_of(METHOD.score(with_rows(rows, 2))) == [[0, 2]]


def test_more_tokens_than_dimensions_are_still_as_many_as_asked() -> None:
    found = METHOD.score(with_rows([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 2.0]], 4))
    assert sorted(found[0].tolist()) == [1.0, 2.0, 3.0, 4.0]


def test_another_compat_is_refused() -> None:
    with pytest.raises(InputError, match="compat"):
        METHOD.score(drawn_taps("decoder", options={"compat": "both"}))
