"""Metrics against numpy on the eager attention that the library itself gives out.  5 s."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from testsuite.passes import padded_llava
from testsuite.passes.analysed import analysed
from testsuite.passes.methods.llava_attention import truth
from testsuite.zoo import llava

from tokopt.ir.facts import analyse
from tokopt.passes import metrics
from tokopt.passes.metrics import LayerMetrics, measure, thirds
from tokopt.passes.normalize import normalize
from tokopt.passes.observe import observe

FORMS = pytest.mark.parametrize("name", ["llava", "llava_explicit"])


def measured(name: str) -> dict[str, tuple[LayerMetrics, ...]]:
    return dict(measure(analysed(name).observed()))


@FORMS
def test_mdi_and_aei_are_those_of_the_eager_attention(name: str) -> None:
    for layer in measured(name)["decoder"]:
        mdi, text, image = [], [], []
        for item, visual in enumerate(truth().visual):
            behind = np.flatnonzero(visual)[-1] + 1
            to = truth().decoder[layer.depth][item][:, behind:].mean((0, 1))
            of_text, of_image = to[~visual].sum(), to[visual].sum()
            rows, count = len(visual), visual.sum()
            mdi.append((of_text / (rows - count)) / (of_image / count))
            text.append(of_text / (of_text + of_image) * rows / (rows - count))
            image.append(of_image / (of_text + of_image) * rows / count)
        found = (layer.mdi, layer.aei_text, layer.aei_visual)
        np.testing.assert_allclose(found, [np.mean(x) for x in (mdi, text, image)], rtol=1e-4)


@FORMS
def test_concentration_is_the_share_of_the_most_attended_rows(name: str) -> None:
    inside = np.array([[False] + [True] * 36] * 2)
    found = measured(name)
    for role, whole, row, mask in (
        ("vision", truth().tower, 0, inside),
        ("decoder", truth().decoder, -1, truth().visual),
    ):
        for layer in found[role]:
            tops = []
            for item in range(2):
                mass = np.sort(whole[layer.depth][item, :, row].mean(0)[mask[item]])[::-1]
                counts = [math.ceil(0.01 * p * len(mass)) for p in (1, 5, 10)]
                tops.append([mass[:count].sum() / mass.sum() for count in counts])
            np.testing.assert_allclose(layer.top, np.mean(tops, axis=0), rtol=1e-4)


def test_sinks_are_counted_where_attention_and_activation_exceed_the_factors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "FACTOR", 2.0)
    monkeypatch.setattr(metrics, "TAU", 2.6)
    pixels, ids = llava.inputs(2, llava.VISUAL + 9, 0)
    with torch.no_grad():
        eager = llava.model(attention="eager", seed=0)
        states = eager(
            pixel_values=pixels, input_ids=ids, output_hidden_states=True, use_cache=False
        ).hidden_states
    sinks, massive = [], []
    for layer in measured("llava")["decoder"]:
        mass = truth().decoder[layer.depth].mean((1, 2))
        sinks.append((mass > 2.0 / mass.shape[1]).sum() / 2)
        x = states[layer.depth].numpy()
        phi = np.abs(x).max(-1) / np.sqrt((x**2).mean(-1))
        massive.append((phi > 2.6).sum() / 2)
        assert (layer.sinks, layer.massive) == (sinks[-1], massive[-1])
    assert sum(sinks) > 0 and 0 < sum(massive) < states[0].shape[1] * len(massive)


def test_padding_changes_no_number() -> None:
    facts = analyse(normalize(padded_llava.exported("sdpa")))
    alone = [measure(observe(facts, item))["decoder"] for item in padded_llava.items()]
    for side in ("left", "right"):
        together = measure(observe(facts, padded_llava.batch(side)))["decoder"]
        for depth, layer in enumerate(together):
            each = [found[depth] for found in alone]
            for name in ("mdi", "aei_text", "aei_visual", "entropy", "top"):
                mean = np.mean([getattr(one, name) for one in each], axis=0)
                np.testing.assert_allclose(getattr(layer, name), mean, rtol=1e-4)


def test_a_tower_has_no_text_and_windowed_layers_are_left_out() -> None:
    found = measured("qwen")
    assert [layer.depth for layer in found["vision"]] == [3]
    assert all(layer.mdi is None and layer.aei_visual is None for layer in found["vision"])


def test_early_middle_and_late_are_two_layers_each() -> None:
    layers = measured("llava")["decoder"]
    depths = {name: [x.depth for x in some] for name, some in thirds(layers).items()}
    assert depths == {"early": [0, 1], "middle": [1, 2], "late": [2, 3]}
