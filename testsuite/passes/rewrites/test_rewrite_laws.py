"""Laws every rewrite of attention obeys, asked of every rewrite in the library."""

import dataclasses

import pytest
import torch
from testsuite.passes.methods.drawn_taps import drawn_taps, tap
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tokopt.ir.errors import InputError
from tokopt.passes.methods.method import LayerTap
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.methods.rows import attention_row, attention_rows
from tokopt.passes.rewrites.attended import Attended, Marking
from tokopt.passes.rewrites.registry import REWRITES, find_rewrite
from tokopt.passes.rewrites.rewrite import Rewrite

LIVELY = {"var": {"tau": 2.2, "rho": 0.3, "summ": 0.3}, "paint": {}}
"""Options under which the drawn values are changed."""
ATTENTION = {name: one for name, one in REWRITES.items() if isinstance(one, Rewrite)}
every_rewrite = pytest.mark.parametrize("name", ATTENTION)


def made(name: str, batch: int = 2, rows: int = 40, **options: float | str) -> Attended:
    """Return drawn taps; marks are computed of a drawn tower."""
    rewrite = ATTENTION[name]
    taps = drawn_taps("decoder", batch=batch, rows=rows)
    assert taps.tower is not None
    layer = taps.tower.layer
    first = tap(0, layer.key.flip(1), layer.query.flip(1), layer.value)
    tower = dataclasses.replace(taps.tower, relay=0, first=first)
    settings = rewrite.settings({**LIVELY[name], **options})
    marks = None
    if rewrite.mark is not None:
        marks = rewrite.mark(Marking(taps.candidates, tower, settings))
    asked = torch.arange(rows) if rewrite.rows == "behind" else torch.tensor([rows - 1])
    at = asked.expand(batch, -1)
    return Attended(taps.layers[0], taps.hidden, taps.candidates, marks, at, settings)


def before(taps: Attended) -> Tensor:
    assert taps.layer.rows is not None
    return taps.layer.rows(taps.at)


@every_rewrite
def test_every_row_of_attention_has_sum_1_and_none_is_negative(name: str) -> None:
    found = ATTENTION[name].attend(made(name))
    assert found.dtype == torch.float32 and bool((found >= 0).all())
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))


@every_rewrite
def test_something_is_changed_unless_the_setting_is_neutral(name: str) -> None:
    rewrite = ATTENTION[name]
    lively, idle = made(name), made(name, **rewrite.neutral)
    assert not torch.allclose(rewrite.attend(lively), before(lively), atol=1e-3)
    torch.testing.assert_close(rewrite.attend(idle), before(idle), rtol=1e-6, atol=1e-7)


@every_rewrite
def test_items_of_a_batch_do_not_see_each_other(name: str) -> None:
    taps = made(name, batch=3)
    together = ATTENTION[name].attend(taps)
    for item in range(3):
        one = slice(item, item + 1)
        layer = rebuilt(*(x[one] for x in (taps.layer.query, taps.layer.key, taps.layer.value)))
        alone = dataclasses.replace(
            taps,
            layer=layer,
            hidden=taps.hidden[one],
            candidates=taps.candidates[one],
            marks=None if taps.marks is None else taps.marks[one],
            at=taps.at[one],
        )
        found = ATTENTION[name].attend(alone)
        torch.testing.assert_close(found[0], together[item], rtol=1e-4, atol=1e-6)


def rebuilt(query: Tensor, key: Tensor, value: Tensor) -> LayerTap:
    scale = 0.9 * 6**-0.5

    def row(number: int) -> Tensor:
        return attention_row(query, key, None, number, scale, False)

    def rows(at: Tensor) -> Tensor:
        return attention_rows(query, key, None, at, scale, False)

    return LayerTap(0, query, key, value, row, scale, rows=rows)


@every_rewrite
def test_a_rewrite_traces_with_free_sizes(name: str) -> None:
    rewrite = ATTENTION[name]

    def flat(taps: Attended) -> list[Tensor]:
        marks = taps.hidden[..., 0] if taps.marks is None else taps.marks
        layer = taps.layer
        given = [layer.query, layer.key, layer.value, taps.hidden, taps.candidates, marks, taps.at]
        return [x.contiguous() for x in given]

    def traced(*given: Tensor) -> Tensor:
        query, key, value, hidden, candidates, marks, at = given
        settings = rewrite.settings(LIVELY[name])
        layer = rebuilt(query, key, value)
        return rewrite.attend(Attended(layer, hidden, candidates, marks, at, settings))

    graph = make_fx(traced, tracing_mode="symbolic")(*flat(made(name)))
    other = made(name, batch=3, rows=43)
    torch.testing.assert_close(graph(*flat(other)), rewrite.attend(other), rtol=1e-4, atol=1e-6)


@every_rewrite
def test_every_rewrite_says_what_it_is(name: str) -> None:
    rewrite = find_rewrite(name)
    assert isinstance(rewrite, Rewrite)
    assert rewrite.paper and rewrite.notes and rewrite.roles == {"decoder"} and rewrite.first >= 0
    assert set(rewrite.neutral) <= set(rewrite.options) and name not in METHODS


def test_an_unknown_rewrite_lists_those_there_are() -> None:
    with pytest.raises(InputError, match="no rewrite of attention 'fastv'") as error:
        find_rewrite("fastv")
    assert all(name in str(error.value) for name in REWRITES)
