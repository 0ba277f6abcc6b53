import dataclasses

import numpy as np
import pytest
from testsuite.passes.methods.drawn_taps import PREFIX, drawn_taps
from testsuite.passes.methods.kept_rows import kept_rows
from testsuite.passes.methods.test_received import matrix

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.passes.methods.hiprune import METHOD
from tokopt.passes.methods.method import Setting, Taps


def kept_by_sets(taps: Taps, object_layer: int, beta: float) -> list[list[int]]:
    """Anchors, buffers and registers as sets, one after the other, tiles of H x W patches."""
    assert taps.places is not None
    _, height, width = taps.places.shape
    tile = height * width
    middle, deep = (matrix(taps.layers[at]).mean(1) for at in (object_layer, -1))
    result = []
    for item in range(len(middle)):
        seen, wanted = middle[item][PREFIX:], deep[item][PREFIX:]
        anchors = sorted(range(len(seen)), key=lambda j: -seen[j])[: round(taps.keep * beta / 5)]
        chosen = set()
        for anchor in anchors:
            low = anchor // tile * tile
            for near in (anchor, anchor - 1, anchor + 1, anchor - width, anchor + width):
                chosen.add(min(max(near, low), low + tile - 1))
        others = sorted(set(range(len(seen))) - chosen, key=lambda j: -wanted[j])
        chosen |= set(others[: taps.keep - len(chosen)])
        result.append(sorted(row + PREFIX for row in chosen))
    return result


def kept(taps: Taps) -> list[list[int]]:
    return kept_rows(METHOD.score(taps).numpy(), taps.candidates.numpy(), taps.keep)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("keep", "beta"), [(26, 0.1), (30, 0.5), (40, 1.0), (12, 0.1), (48, 0.1)])
def test_one_top_k_keeps_what_the_three_sets_hold(seed: int, keep: int, beta: float) -> None:
    options: dict[str, int | float | str] = {"beta": beta}
    taps = drawn_taps(rows=48 + PREFIX, layers=3, keep=keep, seed=seed, options=options)
    assert kept(taps) == kept_by_sets(taps, 1, beta)  # round(8/23 * 3) = 1


def test_tiles_are_clamped_each_for_itself() -> None:
    for seed in range(6):
        taps = drawn_taps(rows=48 + PREFIX, layers=1, keep=20, seed=seed, options={"beta": 1.0})
        assert taps.places is not None
        number = (taps.candidates.long().cumsum(1) - 1).masked_fill(~taps.candidates, -1)
        two = dataclasses.replace(
            taps.places,
            tile=number // 24,
            row=number % 24 // 6,
            column=number % 6,
            shape=(2, 4, 6),
        )
        taps = dataclasses.replace(taps, places=two)
        assert kept(taps) == kept_by_sets(taps, 0, 1.0)


@pytest.mark.parametrize(("keep", "anchors"), [(192, 4), (128, 3), (64, 1), (20, 0)])
def test_the_published_numbers_of_anchors(keep: int, anchors: int) -> None:
    taps = drawn_taps(rows=196 + PREFIX, batch=1, layers=1, heads=1, kv_heads=1, keep=keep)
    marked = int((METHOD.score(taps)[0] >= 2).sum())
    assert anchors <= marked <= 5 * anchors and marked > 4 * (anchors - 1)


@pytest.mark.parametrize(("layers", "wanted"), [(23, 8), (12, 4), (2, 1), (1, 0)])
def test_the_object_layer_is_scaled_to_the_depth(layers: int, wanted: int) -> None:
    options: dict[str, int | float | str] = {"beta": 1.0}
    taps = drawn_taps(rows=20 + PREFIX, layers=layers, keep=10, options=options)
    assert kept(taps) == kept_by_sets(taps, wanted, 1.0)
    stated = dataclasses.replace(taps, options={"beta": 1.0, "object": wanted})
    assert kept(stated) == kept(taps)


@pytest.mark.parametrize("options", [{"object": 4}, {"object": "deep"}, {"beta": 2}])
def test_settings_that_make_no_sense_are_refused(options: dict[str, int | float | str]) -> None:
    with pytest.raises(InputError, match="hiprune: "):
        METHOD.score(drawn_taps(keep=10, options={"beta": 1.0, **options}))


def test_what_is_missing_is_named() -> None:
    taps = drawn_taps(keep=10, options={"beta": 1.0})
    with pytest.raises(UnsupportedError, match="groups of 4") as error:
        METHOD.score(dataclasses.replace(taps, group=4))
    assert "fopru" in str(error.value)
    with pytest.raises(UnsupportedError, match="where in the image"):
        METHOD.score(dataclasses.replace(taps, places=None))
    with pytest.raises(UnsupportedError, match="no layer lies before"):
        METHOD.score(dataclasses.replace(taps, layers=[]))


def test_the_published_stage_is_at_the_end() -> None:
    (place,) = METHOD.schedule(Setting("vision", 23, 576, 64))
    assert (place.depth, place.keep) == (23, 64)


def test_the_class_row_asks_too() -> None:
    """Only the class row looks at patch 3: it is the first register."""
    taps = drawn_taps(batch=1, layers=1, keep=1)
    whole = np.zeros((1, 1, 14, 14))
    whole[..., 7] = 0.05
    whole[..., 0, 5] = 1.0

    def rows(at):  # type: ignore[no-untyped-def]
        return taps.hidden.new_tensor(whole)[:, :, at[0]]

    layer = dataclasses.replace(taps.layers[0], rows=rows)
    assert kept(dataclasses.replace(taps, layers=[layer])) == [[5]]
