import dataclasses

import numpy as np
import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, failures
from testsuite.passes.methods.drawn_taps import PREFIX, drawn_taps
from testsuite.passes.methods.kept_rows import kept_rows
from testsuite.passes.methods.llava_attention import truth
from testsuite.passes.methods.test_received import matrix

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.fit import fit
from tokopt.passes.methods.fopru import METHOD
from tokopt.passes.methods.method import LayerTap, Setting, Taps

LOGITS = {"scores": "logits"}


def draw_nothing(number: int) -> torch.Tensor:
    raise AssertionError("logits need no attention")


def by_logits(taps: Taps) -> np.ndarray:
    """The port's rule on the whole matrix of logits."""
    layer, result = taps.layers[-1], np.zeros(taps.candidates.shape)
    key = layer.key.repeat_interleave(layer.query.shape[1] // layer.key.shape[1], 1).double()
    logits = (layer.query.double() @ key.transpose(-1, -2) * layer.scale).mean(1).numpy()
    for item, inside in enumerate(taps.candidates.numpy()):
        patches = logits[item][np.ix_(inside, inside)]
        got, given = patches.mean(0), patches.mean(1)
        result[item, inside] = got if got.var() > given.var() else given
    return result


@pytest.mark.parametrize("relay", [0, None])
def test_the_score_is_the_attention_received_from_patches(relay: int | None) -> None:
    taps = drawn_taps(relay=relay)
    whole, visual = matrix(taps.layers[-1]), taps.candidates.numpy()
    for item in range(2):
        expected = whole[item][np.ix_(visual[item], visual[item])].mean(0)
        found = METHOD.score(taps)[item][taps.candidates[item]].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_with_logits_what_varies_more_counts(seed: int) -> None:
    taps = drawn_taps(batch=3, seed=seed, options={"scores": "logits"})
    inside = taps.candidates.numpy()
    found = METHOD.score(taps).numpy()
    np.testing.assert_allclose(found[inside], by_logits(taps)[inside], rtol=1e-4, atol=1e-6)


def test_with_logits_both_sides_can_win() -> None:
    """Keys that differ where queries are alike, and the other way round."""
    same, other = torch.ones(1, 1, 4, 1), torch.tensor([1.0, 5.0, 2.0, 9.0]).reshape(1, 1, 4, 1)
    for query, key in ((same, other), (other, same)):
        layer = LayerTap(0, query, key, key, draw_nothing, 0.5)
        seen = torch.ones(1, 4, dtype=torch.bool)
        taps = Taps([layer], 1, seen, key[0], None, None, 2, 0, count=4, options=LOGITS)
        assert METHOD.score(taps)[0].tolist() == [0.5, 2.5, 1.0, 4.5]


def test_an_unknown_reading_is_refused() -> None:
    with pytest.raises(InputError, match="fopru: scores"):
        METHOD.score(drawn_taps(options={"scores": "rows"}))


def test_a_site_with_no_layer_before_it_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no layer lies before"):
        METHOD.score(drawn_taps(layers=0))


def test_the_published_stage_is_at_the_end() -> None:
    (place,) = METHOD.schedule(Setting("vision", 23, 576, 144))
    assert (place.depth, place.keep) == (23, 144)


def test_kept_tokens_are_those_of_the_eager_attention() -> None:
    taps = analysed("llava").observed().stacks["vision"].taps("vision:end", 9)
    received = truth().tower[2].mean(1)[:, 1:, :].mean(1)
    allowed = taps.candidates.numpy()
    assert kept_rows(METHOD.score(taps).numpy(), allowed, 9) == kept_rows(received, allowed, 9)


@pytest.mark.parametrize("scores", ["attention", "logits"])
@pytest.mark.parametrize("keep", [6, 8, 12])
def test_whole_lines_stay_and_the_best_of_the_next(keep: int, scores: str) -> None:
    """12 candidates are 3 lines of 4."""
    options = {"scores": scores, "strategy": "rows"}
    taps = drawn_taps(keep=keep, options=options)
    plain = METHOD.score(dataclasses.replace(taps, options={"scores": scores})).double().numpy()
    found = kept_rows(METHOD.score(taps).numpy(), taps.candidates.numpy(), keep)
    for item in range(2):
        grid = plain[item, PREFIX:].reshape(3, 4)
        order = sorted(range(3), key=lambda line: -grid[line].sum())
        patches = [(line, p) for line in order for p in np.argsort(-grid[line], kind="stable")]
        assert found[item] == sorted(PREFIX + 4 * line + p for line, p in patches[:keep])


def test_lines_ask_for_a_grid_and_single_patches_do_not() -> None:
    facts = analysed("qwen").facts
    assert fit(facts, METHOD, 0.5).plan.stages
    with pytest.raises(UnsupportedError, match="where in the image"):
        fit(facts, METHOD, 0.5, options={"strategy": "rows"})
    assert fit(facts, METHOD, 0.5, options={"strategy": "rows", "grid": "8x12"}).plan.stages


def test_lines_pass_every_gate() -> None:
    family = analysed("llava")
    stage = Stage("vision:2", "fopru", 15, {"strategy": "rows"})
    done = checked(family, Plan((stage,)))
    assert failures(done, [every_input(family)[0]]) == ""
