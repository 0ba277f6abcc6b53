import dataclasses

import numpy as np
import pytest
import torch
from testsuite.passes.methods.drawn_taps import PREFIX, drawn_taps
from testsuite.passes.methods.kept_rows import kept_rows
from testsuite.passes.methods.test_received import matrix
from torch import Tensor

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.passes.methods.holov import METHOD
from tokopt.passes.methods.method import Setting, Taps
from tokopt.passes.methods.quota import quotas

Options = dict[str, int | float | str]


def by_loops(taps: Taps, crops: int, code: bool) -> list[list[int]]:
    """The formulas, a crop and a token at a time; what is left goes to the best of the others."""
    result = []
    for item in range(len(taps.hidden)):
        look = matrix(taps.layers[-1])[item][0][PREFIX:]
        rows = taps.hidden[item][PREFIX:].numpy().astype(float)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        parts = np.array_split(np.arange(len(rows)), crops)
        value, weight = look.copy(), []
        for part in parts:
            variety = []
            for i in part:
                alike = [0.0 if i == j else float(rows[i] @ rows[j]) for j in part]
                mean = sum(alike) / max(len(part) - 1, 1)
                variety.append(sum((s - mean) ** 2 for s in alike) / max(len(part) - 1, 1))
            gamma = look[part].mean() / (np.mean(variety) + 1e-6)
            both = look[part] + gamma * np.array(variety)
            weight.append(both.mean())
            if not code:
                value[part] = both
        shares = np.array(weight) / sum(weight) * taps.keep
        quota = np.floor(shares).astype(int)
        for crop in np.argsort(-shares, kind="stable")[: taps.keep - quota.sum()]:
            quota[crop] += 1
        chosen = set()
        for part, count in zip(parts, quota, strict=True):
            chosen |= set(part[np.argsort(-value[part], kind="stable")][:count].tolist())
        for row in np.argsort(-value, kind="stable").tolist():
            if len(chosen) < taps.keep:
                chosen.add(row)
        result.append(sorted(row + PREFIX for row in chosen))
    return result


def kept(taps: Taps) -> list[list[int]]:
    return kept_rows(METHOD.score(taps).numpy(), taps.candidates.numpy(), taps.keep)


@pytest.mark.parametrize("compat", ["paper", "code"])
@pytest.mark.parametrize(("count", "keep", "crops"), [(40, 13, 4), (43, 17, 5), (12, 5, 12)])
@pytest.mark.parametrize("seed", range(3))
def test_kept_tokens_are_those_of_the_formulas(
    compat: str, count: int, keep: int, crops: int, seed: int
) -> None:
    options: Options = {"compat": compat, "crops": crops}
    taps = drawn_taps(rows=count + PREFIX, layers=1, keep=keep, seed=seed, options=options)
    taps = dataclasses.replace(taps, hidden=taps.hidden * taps.hidden.exp())  # uneven variety
    assert kept(taps) == by_loops(taps, crops, compat == "code")


def focused(keep: int, compat: str) -> Taps:
    """Nearly all attention on the first of three crops of 6: it cannot hold its share."""
    taps = drawn_taps(rows=18 + PREFIX, layers=1, keep=keep, options={"crops": 3, "compat": compat})
    layer = taps.layers[0]
    key = 0.2 * layer.key
    key[:, :, PREFIX : PREFIX + 6] += layer.query[:, ::2, :1] * 3
    whole = layer.query @ key.repeat_interleave(2, 1).transpose(-1, -2) * layer.scale

    def row(number: int) -> Tensor:
        return whole.softmax(-1)[:, :, number]

    return dataclasses.replace(taps, layers=[dataclasses.replace(layer, key=key, row=row)])


@pytest.mark.parametrize("compat", ["paper", "code"])
def test_what_a_full_crop_cannot_hold_goes_to_the_best_of_the_others(compat: str) -> None:
    for keep in (6, 8, 12, 18):
        taps = focused(keep, compat)
        assert kept(taps) == by_loops(taps, 3, compat == "code")
    assert all(set(range(PREFIX, PREFIX + 6)) <= set(rows) for rows in kept(focused(12, compat)))


def test_variety_counts_in_the_paper_and_not_in_the_code() -> None:
    options: list[Options] = [{"crops": 1, "compat": c} for c in ("paper", "code")]
    seen = [drawn_taps(rows=30, layers=1, keep=9, options=o) for o in options]
    assert kept(seen[0]) != kept(seen[1])
    look = matrix(seen[1].layers[0])[:, 0]
    assert kept(seen[1]) == kept_rows(look, seen[1].candidates.numpy(), 9)


@pytest.mark.parametrize(("count", "keep", "crops"), [(576, 64, 16), (576, 128, 8), (576, 192, 5)])
def test_the_published_numbers_of_crops(count: int, keep: int, crops: int) -> None:
    sides = [
        drawn_taps(rows=count + PREFIX, layers=1, batch=1, keep=keep, options=o)
        for o in ({}, {"crops": crops})
    ]
    assert torch.equal(METHOD.score(sides[0]), METHOD.score(sides[1]))


def test_shares_are_rounded_down_and_the_rest_goes_to_the_largest() -> None:
    weight = torch.tensor([[0.1, 0.45, 0.25, 0.2], [1.0, 1.0, 1.0, 1.0]])
    assert quotas(weight, 7).tolist() == [[0.0, 4.0, 2.0, 1.0], [2.0, 2.0, 2.0, 1.0]]


@pytest.mark.parametrize("options", [{"crops": 0}, {"crops": "many"}, {"compat": "blog"}])
def test_settings_that_make_no_sense_are_refused(options: Options) -> None:
    with pytest.raises(InputError, match="holov: "):
        METHOD.score(drawn_taps(options=options))


def test_a_tower_without_class_token_is_refused_with_a_way_out() -> None:
    with pytest.raises(UnsupportedError, match="class token") as error:
        METHOD.score(drawn_taps(relay=None))
    assert "fopru" in str(error.value)


def test_the_published_stage_is_at_the_end() -> None:
    (place,) = METHOD.schedule(Setting("vision", 23, 576, 64))
    assert (place.depth, place.keep) == (23, 64)
