import numpy as np
import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.methods.drawn_taps import drawn_taps
from testsuite.passes.methods.kept_rows import kept_rows
from testsuite.passes.methods.llava_attention import truth

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.passes.methods.method import Setting
from tokopt.passes.methods.vtc_cls import METHOD


def reference(taps, start: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The formula, with loops: sum over layers of the mean over heads of the class token's row."""
    batch, rows = taps.candidates.shape
    total = np.zeros((batch, rows))
    for layer in taps.layers:
        if layer.depth < start:
            continue
        query, key = layer.query.numpy().astype(float), layer.key.numpy().astype(float)
        heads = query.shape[1]
        for item in range(batch):
            for head in range(heads):
                keys = key[item, head * key.shape[1] // heads]
                logits = [float(query[item, head, 0] @ k) * layer.scale for k in keys]
                powers = np.exp(np.array(logits) - max(logits))
                total[item] += powers / powers.sum() / heads
    return total


@pytest.mark.parametrize(("layers", "start"), [(23, 16), (12, 8), (4, 3), (3, 2), (2, 1), (1, 0)])
def test_the_score_sums_the_last_third_of_the_layers(layers: int, start: int) -> None:
    taps = drawn_taps(layers=layers)
    np.testing.assert_allclose(METHOD.score(taps).numpy(), reference(taps, start), rtol=2e-5)


def test_the_start_layer_is_an_option() -> None:
    taps = drawn_taps(layers=4, options={"start": 1})
    np.testing.assert_allclose(METHOD.score(taps).numpy(), reference(taps, 1), rtol=2e-5)


@pytest.mark.parametrize("start", [4, -1, "early"])
def test_a_start_that_is_no_layer_before_the_site_is_refused(start: int | str) -> None:
    with pytest.raises(InputError, match="vtc_cls: start"):
        METHOD.score(drawn_taps(layers=4, options={"start": start}))


def test_a_hand_worked_score() -> None:
    taps = drawn_taps(batch=1, rows=3, layers=1, heads=2, kv_heads=2)
    rows = torch.tensor([[[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]])
    object.__setattr__(taps.layers[0], "row", lambda number: rows)
    assert METHOD.score(taps)[0].tolist() == pytest.approx([0.4, 0.3, 0.3])


def test_a_tower_without_class_token_is_refused_with_a_way_out() -> None:
    with pytest.raises(UnsupportedError, match="class token") as error:
        METHOD.score(drawn_taps(relay=None))
    assert "flowcut" in str(error.value)


def test_the_published_stage_is_at_the_end() -> None:
    (place,) = METHOD.schedule(Setting("vision", 23, 576, 64))
    assert (place.depth, place.keep) == (23, 64)


@pytest.mark.parametrize("model", ["llava", "llava_explicit", "llava_dynamic"])
@pytest.mark.parametrize("keep", [1, 9, 20, 35])
def test_kept_tokens_are_those_of_the_eager_attention(model: str, keep: int) -> None:
    """HF's own ``output_attentions``; of the three layers that are computed, the last counts."""
    seen = analysed(model).observed().stacks["vision"]
    assert len(seen.layers) == 3
    taps = seen.taps("vision:end", keep)
    expected = truth().tower[2][:, :, 0, :].mean(1)
    allowed = taps.candidates.numpy()
    assert kept_rows(METHOD.score(taps).numpy(), allowed, keep) == kept_rows(
        expected, allowed, keep
    )
