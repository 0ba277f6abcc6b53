import dataclasses

import numpy as np
import pytest
import torch
from testsuite.passes.methods.drawn_taps import drawn_taps
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.rewrites.attended import Attended
from tokopt.passes.rewrites.rewrite import rows_behind
from tokopt.passes.rewrites.var import REWRITE, SCALING

SETTINGS = {"p": 0.6, "rho": 0.3, "summ": 0.7, "tau": 2.2}


def attended(options: dict[str, float | str], rows: int = 24) -> Attended:
    taps = drawn_taps("decoder", rows=rows)
    at = torch.arange(rows).expand(2, -1)
    settings = REWRITE.settings(options)
    return Attended(taps.layers[0], taps.hidden, taps.candidates, None, at, settings)


def whole(taps: Attended) -> np.ndarray:
    return torch.stack([taps.layer.row(q) for q in range(taps.at.shape[1])], 2).numpy()


def reference(taps: Attended, dims: list[int]) -> tuple[np.ndarray, int]:
    """VAR an item, a head and a row at a time; how often it acted."""
    weights, acted = whole(taps).astype(float), 0
    p, rho, summ, tau = (float(taps.options[k]) for k in ("p", "rho", "summ", "tau"))
    for item, x in enumerate(taps.hidden.numpy().astype(float)):
        rows = range(len(x))
        rms = [np.sqrt(np.mean(x[j] ** 2)) for j in rows]
        sinks = {j for j in rows if max(abs(x[j][d]) for d in dims) / rms[j] > tau}
        visual = {j for j in rows if bool(taps.candidates[item, j])}
        for head in weights[item]:
            for line in head:
                total = sum(line[j] for j in visual)
                seen = sum(line[j] for j in visual - sinks)
                if total < summ or seen < rho * total:
                    continue
                acted += 1
                freed = sum((1 - p) * line[j] for j in sinks)
                new = line.copy()
                for j in sinks:
                    new[j] = p * line[j]
                for j in visual - sinks:
                    new[j] = line[j] + freed * line[j] / seen
                line[:] = new
    return weights, acted


@pytest.mark.parametrize("dims", ["all", "1, 3,7"])
def test_attention_is_moved_as_published(dims: str) -> None:
    tau = 2.2 if dims == "all" else 1.2
    taps = attended({**SETTINGS, "tau": tau, "dims": dims})
    width = taps.hidden.shape[-1]
    expected, acted = reference(taps, [*range(width)] if dims == "all" else [1, 3, 7])
    found = REWRITE.attend(taps)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)
    assert 0 < acted < expected[..., 0].size
    assert np.abs(expected - whole(taps)).max() > 0.01


@pytest.mark.parametrize("width", [2, 6])
def test_what_rows_read_needs_no_attention_written_out(width: int) -> None:
    """The sums of other values, asked for one by one, give what the moved attention gives."""
    taps = attended(SETTINGS)
    value = taps.layer.value[..., :width]  # 2: the three sets take two values to ask for
    taps = dataclasses.replace(taps, layer=dataclasses.replace(taps.layer, value=value))
    before, groups = torch.from_numpy(whole(taps)), taps.layer.query.shape[1] // value.shape[1]

    def reading(weights: Tensor, values: Tensor) -> Tensor:
        return weights @ values.repeat_interleave(groups, 1)

    answers = tuple(reading(before, other) for other in SCALING.asked(taps))
    found = SCALING.mixed(taps, reading(before, value), answers)
    torch.testing.assert_close(found, reading(REWRITE.attend(taps), value), rtol=1e-4, atol=1e-5)


def test_attention_is_moved_and_not_made() -> None:
    found: Tensor = REWRITE.attend(attended(SETTINGS))
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))


def test_the_neutral_setting_changes_nothing() -> None:
    taps = attended({**SETTINGS, **REWRITE.neutral})
    assert torch.equal(REWRITE.attend(taps), torch.from_numpy(whole(taps)))


@pytest.mark.parametrize(
    ("options", "what"),
    [({"dims": "3,99"}, "numbers below 12"), ({"dims": "x"}, "numbers below"), ({"p": "x"}, "num")],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, float | str], what: str) -> None:
    with pytest.raises(InputError, match=what):
        REWRITE.attend(attended(options))


def test_an_option_that_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match="var has no option 'beta'"):
        REWRITE.settings({"beta": 0.6})


def test_rows_behind_the_image_are_told_item_by_item() -> None:
    seen = torch.tensor([[0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    found = rows_behind(seen)
    assert found.long().tolist() == [[0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1], [0] * 6]


def test_a_row_that_sees_only_sinks_keeps_its_attention() -> None:
    taps = attended({**SETTINGS, "rho": 0.0, "tau": 0.0})  # every row is a sink
    assert torch.equal(REWRITE.attend(taps), torch.from_numpy(whole(taps)))
    empty = dataclasses.replace(taps, candidates=torch.zeros_like(taps.candidates))
    assert bool(REWRITE.attend(empty).isfinite().all())
