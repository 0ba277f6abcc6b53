import dataclasses

import numpy as np
import pytest
import torch
from testsuite.passes.analysed import Analysed, analysed
from testsuite.passes.families import checked, failures, plan
from testsuite.passes.methods.drawn_taps import PREFIX, drawn_taps, tap
from testsuite.passes.methods.kept_rows import kept_rows
from testsuite.passes.methods.test_received import matrix
from testsuite.zoo import llava_next

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import analyse
from tokopt.ir.mosaic import Mosaic, find_mosaic
from tokopt.ir.places import Places
from tokopt.passes.fit import fit
from tokopt.passes.methods.hired import METHOD
from tokopt.passes.methods.method import Setting, Taps
from tokopt.passes.normalize import normalize

H, W = 4, 6
"""Places of every tile."""


def sequence(rows: int, columns: int) -> list[tuple[int, int, int]]:
    """The whole picture, then its tiles line by line, each line of all tiles with a newline."""
    found = [(0, r, c) for r in range(H) for c in range(W)]
    for line in range(rows * H):
        for column in range(columns * W):
            tile = 1 + line // H * columns + column // W
            found.append((tile, line % H, column % W))
        found.append((-1, -1, -1))
    return found


def tiled(rows: int, columns: int, keep: int, seed: int = 0, **options: str | float) -> Taps:
    """Two items: a text row, the visual rows, two text rows; some tiles looked at far more."""
    order = sequence(rows, columns)
    count, tiles = len(order), rows * columns + 1
    table = torch.full((2, count + 3, 3), -1)
    table[:, 1 : count + 1] = torch.tensor(order)
    mask = torch.zeros(2, count + 3, dtype=torch.bool)
    mask[:, 1 : count + 1] = True
    draw = torch.Generator().manual_seed(seed)
    sharp = torch.randn(6, 2 * tiles, 2, PREFIX + H * W, 3, generator=draw) * 1.5
    first, last = tap(0, *sharp[:3]), tap(1, *sharp[3:])
    number = [(t * H * W + r * W + c) if t >= 0 else -1 for t, r, c in order]

    def arrive(values: torch.Tensor, elsewhere: float) -> torch.Tensor:
        flat = values[:, PREFIX:].reshape(2, -1)
        found = torch.zeros(2, count + 3)
        for at, source in enumerate(number):
            found[:, 1 + at] = flat[:, source] if source >= 0 else elsewhere
        return found

    base = drawn_taps("decoder", keep=keep, seed=seed, options=options)
    assert base.tower is not None
    tower = dataclasses.replace(base.tower, layer=last, first=first, arrive=arrive, relay=0)
    places = Places(
        *table.unbind(-1), (tiles, H, W), find_mosaic([tile for tile, _, _ in order], tiles)
    )
    return dataclasses.replace(base, tower=tower, places=places, candidates=mask, count=count)


def by_loops(taps: Taps, rows: int, columns: int, alpha: float, code: bool) -> list[list[int]]:
    """The formulas, a picture and a tile at a time."""
    assert taps.tower is not None and taps.places is not None and taps.tower.first is not None
    tiles, result = rows * columns + 1, []
    early = matrix(taps.tower.first).reshape(2, tiles, PREFIX + H * W, -1)[:, :, 0, PREFIX:]
    late = matrix(taps.tower.layer).reshape(2, tiles, PREFIX + H * W, -1)[:, :, 0, PREFIX:]
    for item in range(2):
        whole, parts = early[item, 0].reshape(H, W), np.zeros(tiles - 1)
        if code:
            best = np.argsort(-whole.ravel(), kind="stable")[: int(H * W * (1 - alpha))]
            for place in best:
                parts[place * (tiles - 1) // (H * W)] += 1
        else:
            for n, block in enumerate(
                b for line in np.array_split(whole, rows) for b in np.array_split(line, columns, 1)
            ):
                parts[n] = block.sum()
        share = min(int(alpha * taps.keep), H * W)
        exact = parts / parts.sum() * (taps.keep - share)
        quota = np.floor(exact).astype(int)
        for tile in np.argsort(-exact, kind="stable")[: taps.keep - share - quota.sum()]:
            quota[tile] += 1
        at = {
            tuple(place): row
            for row, place in enumerate(taps.places.table[item].tolist())
            if place[0] >= 0
        }
        chosen: list[int] = []
        rest: list[tuple[float, int]] = []
        for tile, count in enumerate([share, *quota]):
            order = np.argsort(-late[item, tile], kind="stable")
            spots = [(at[tile, p // W, p % W], late[item, tile, p]) for p in order]
            chosen += [row for row, _ in spots[:count]]
            rest += [(-value, row) for row, value in spots[count:]]
        chosen += [row for _, row in sorted(rest)[: taps.keep - len(chosen)]]
        result.append(sorted(chosen))
    return result


def kept(taps: Taps) -> list[list[int]]:
    return kept_rows(METHOD.score(taps).numpy(), taps.candidates.numpy(), taps.keep)


@pytest.mark.parametrize("compat", ["paper", "code"])
@pytest.mark.parametrize(
    ("rows", "columns", "keep", "alpha"), [(1, 2, 19, 0.5), (2, 2, 30, 0.25), (2, 3, 70, 0.5)]
)
def test_kept_rows_are_those_of_the_formulas(
    rows: int, columns: int, keep: int, alpha: float, compat: str
) -> None:
    for seed in range(2):
        taps = tiled(rows, columns, keep, seed, alpha=alpha, compat=compat)
        assert taps.places is not None and taps.places.mosaic == Mosaic(0, rows, columns)
        assert kept(taps) == by_loops(taps, rows, columns, alpha, compat == "code")


def test_what_the_whole_picture_cannot_fill_goes_to_the_tiles() -> None:
    taps = tiled(1, 2, 60)
    assert kept(taps) == by_loops(taps, 1, 2, 0.5, False)
    assert all(set(range(1, H * W + 1)) <= set(rows) for rows in kept(taps))


def test_regions_are_rectangles_and_those_of_the_code_are_strips() -> None:
    """All of the first look on the left half of the picture: the strips cannot see that."""
    found = {}
    for compat in ("paper", "code"):
        taps = tiled(2, 2, 40, compat=compat)
        assert taps.tower is not None and taps.places is not None
        assert taps.tower.first is not None
        left = torch.zeros(10, 2, PREFIX + H * W)
        left[:, :, PREFIX:].unflatten(-1, (H, W))[..., : W // 2] = 1.0
        first = dataclasses.replace(taps.tower.first, row=lambda _, left=left: left)
        taps = dataclasses.replace(taps, tower=dataclasses.replace(taps.tower, first=first))
        tiles = [taps.places.tile[0, row].item() for row in kept(taps)[0]]
        found[compat] = [tiles.count(tile) for tile in range(5)]
    assert found == {"paper": [20, 10, 0, 10, 0], "code": [20, 5, 5, 5, 5]}


def test_newlines_go_first() -> None:
    taps = tiled(2, 2, 5 * H * W)
    assert taps.places is not None
    for item, rows in enumerate(kept(taps)):
        assert all(taps.places.tile[item, row] >= 0 for row in rows)


def test_one_picture_keeps_what_the_class_token_looks_at() -> None:
    taps = drawn_taps("decoder")
    assert taps.tower is not None
    look = matrix(taps.tower.layer)[:, 0, PREFIX:]
    for item, rows in enumerate(kept(taps)):
        best = np.argsort(-look[item])[: taps.keep]
        visual = taps.candidates[item].nonzero()[:, 0]
        assert rows == sorted(visual[best.copy()].tolist())


def test_what_it_cannot_read_is_refused_with_a_way_out() -> None:
    taps = tiled(1, 2, 9)
    assert taps.tower is not None and taps.places is not None
    blind = dataclasses.replace(taps.tower, relay=None)
    with pytest.raises(UnsupportedError, match="class token") as error:
        METHOD.score(dataclasses.replace(taps, tower=blind))
    assert "vflowopt" in str(error.value)
    loose = dataclasses.replace(taps.places, mosaic=None)
    with pytest.raises(UnsupportedError, match="how 3 tiles lie") as error:
        METHOD.score(dataclasses.replace(taps, places=loose))
    assert "vflowopt" in str(error.value)


def test_a_photo_in_tiles_passes_every_gate() -> None:
    """LLaVA-NeXT, 1 x 2 tiles of which padding is cropped off, each line with a newline."""
    sample = llava_next.build()
    facts = analyse(normalize(sample.exported))
    family = Analysed(sample, facts)
    decoder = family.stack("decoder")
    assert facts.places(decoder).mosaic == Mosaic(0, 1, 2)
    done = checked(family, plan("decoder:0 hired 30"))
    assert failures(done, [family.named(sample.inputs)]) == ""


def test_the_published_stage_is_in_front_of_the_decoder() -> None:
    (place,) = METHOD.schedule(Setting("decoder", 32, 2880, 576, consumer=True))
    assert (place.depth, place.keep) == (0, 576)
    assert [s.site for s in fit(analysed("llava").facts, METHOD, 0.25).plan.stages] == ["decoder:0"]
