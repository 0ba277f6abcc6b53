import numpy as np
import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.flat_vit import FlatVit
from testsuite.passes.methods.drawn_taps import tap
from testsuite.passes.methods.llava_attention import truth
from testsuite.zoo import llava, qwen2_5_vl

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.passes.observe import _entropy, average_entropies, observe

LLAVAS = pytest.mark.parametrize("model", ["llava", "llava_explicit", "llava_dynamic"])


@LLAVAS
def test_every_row_of_every_layer_is_that_of_the_eager_attention(model: str) -> None:
    seen = analysed(model).observed()
    for role, whole in (("vision", truth().tower), ("decoder", truth().decoder)):
        for layer in seen.stacks[role].layers:
            for row in (0, 7, -1):
                np.testing.assert_allclose(
                    layer.row(row).numpy(), whole[layer.depth][:, :, row], rtol=1e-4, atol=1e-6
                )


@LLAVAS
def test_operands_have_one_form_and_give_the_same_attention(model: str) -> None:
    """Query and key, with positions applied, times the scale are the logits (up to the mask)."""
    seen = analysed(model).observed()
    for layer in seen.stacks["vision"].layers:
        logits = layer.query @ layer.key.transpose(-1, -2) * layer.scale
        np.testing.assert_allclose(
            logits.softmax(-1).numpy(), truth().tower[layer.depth], rtol=1e-4, atol=1e-6
        )
    for layer in seen.stacks["decoder"].layers:  # the last row reads everything
        key = layer.key.repeat_interleave(4 // layer.key.shape[1], 1)
        last = (layer.query[:, :, -1:] @ key.transpose(-1, -2) * layer.scale).softmax(-1)
        expected = truth().decoder[layer.depth][:, :, -1:]
        np.testing.assert_allclose(last.numpy(), expected, rtol=1e-4, atol=1e-6)


@LLAVAS
def test_values_are_those_of_the_value_projection(model: str) -> None:
    seen = analysed(model).observed()
    for role, values in (("vision", truth().tower_values), ("decoder", truth().decoder_values)):
        for layer in seen.stacks[role].layers:
            expected = values[layer.depth].transpose(0, 2, 1, 3)
            expected = expected.repeat(layer.value.shape[1] // expected.shape[1], 1)
            np.testing.assert_allclose(layer.value.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_candidates_are_all_but_learned_rows_in_a_tower_and_the_image_in_a_decoder() -> None:
    seen = analysed("llava").observed()
    assert seen.stacks["vision"].candidates.tolist() == [[False] + [True] * 36] * 2
    ids = analysed("llava").sample.inputs[1]
    assert torch.equal(seen.stacks["decoder"].candidates, ids == llava.IMAGE_TOKEN)
    registers = analysed("dino").observed().stacks["vision"]
    assert registers.candidates.tolist() == [[False] * 5 + [True] * 36]


def test_in_a_windowed_tower_every_patch_is_a_candidate() -> None:
    seen = analysed("qwen").observed().stacks["vision"]
    assert seen.candidates.shape == (1, 96) and bool(seen.candidates.all())
    assert seen.taps("vision:end", 32).group == 4


def test_images_of_one_packed_tower_are_items_of_their_own() -> None:
    seen = analysed("qwen_images").observed().stacks["vision"]
    assert seen.candidates.shape == (2, 96) and bool(seen.candidates.all())
    assert {rows.shape for rows in seen.hidden.values()} == {(2, 96, 64)}
    assert seen.entropies[:2] == (1.0, 1.0) and 0 < seen.entropies[2] < 1  # two attend in windows


def test_entropies_are_those_of_the_eager_attention() -> None:
    seen = analysed("llava").observed()
    inside = np.array([[False] + [True] * 36] * 2)
    for role, whole, row, mask in (
        ("vision", truth().tower, 0, inside),
        ("decoder", truth().decoder, -1, truth().visual),
    ):
        for depth, found in enumerate(seen.entropies[role]):
            ratios = []
            for item in range(2):
                mass = whole[depth][item, :, row].mean(0)[mask[item]]
                mass = mass / mass.sum()
                ratios.append(-(mass * np.log(mass)).sum() / np.log(36))
            assert found == pytest.approx(np.mean(ratios), rel=1e-4)


def test_even_attention_has_entropy_one_and_a_single_peak_zero() -> None:
    allowed = torch.tensor([[False, True, True, True]])
    even = torch.zeros(1, 1, 4, 2)
    assert _entropy(tap(0, even, even, even), allowed, 0) == pytest.approx(1.0)
    query, key = torch.ones(1, 1, 4, 2), torch.zeros(1, 1, 4, 2)
    key[:, :, 2] = 500.0
    assert _entropy(tap(0, query, key, even), allowed, 0) == pytest.approx(0.0)
    one = torch.tensor([[False, True, False, False]])
    assert _entropy(tap(0, query, key, even), one, 0) == 1.0  # ln 1 = 0: no ratio to take


def test_calibration_averages_over_runs() -> None:
    case = analysed("llava_dynamic")
    runs = [observe(case.facts, case.named(inputs)) for inputs in case.sample.all_inputs[:3]]
    found = average_entropies(runs)
    for role in ("vision", "decoder"):
        expected = np.mean([run.entropies[role] for run in runs], 0)
        assert list(found[role]) == pytest.approx(expected.tolist())


def test_a_dynamic_program_is_observed_at_every_size() -> None:
    case = analysed("llava_dynamic")
    for inputs in case.sample.all_inputs:
        seen = observe(case.facts, case.named(inputs)).stacks["decoder"]
        assert torch.equal(seen.candidates, inputs[1] == llava.IMAGE_TOKEN)
        assert seen.layers[0].query.shape[:3] == (len(inputs[0]), 4, inputs[1].shape[1])
        assert seen.hidden["decoder:0"].shape == (*inputs[1].shape, 64)


def test_a_flattened_stream_is_seen_per_item() -> None:
    case = analysed("flat")
    seen = case.observed().stacks["vision"]
    module = case.sample.eager
    assert isinstance(module, FlatVit)
    (patches,) = case.sample.inputs
    rows = torch.cat([module.first.expand(2, -1, -1), module.embed(patches)], 1)
    torch.testing.assert_close(seen.hidden["vision:0"], rows)
    q, k, v = module.blocks[0].qkv(module.blocks[0].norm(rows)).unflatten(-1, (3, 2, 16)).unbind(2)
    for got, want in zip(
        (seen.layers[0].query, seen.layers[0].key, seen.layers[0].value), (q, k, v), strict=True
    ):
        torch.testing.assert_close(got, want.transpose(1, 2))


@pytest.mark.parametrize("name", ["random1", "random4", "random5", "handvit", "dino"])
def test_hidden_states_and_operands_share_their_rows_whatever_the_layout(name: str) -> None:
    case = analysed(name)
    for inputs in case.sample.all_inputs:
        seen = observe(case.facts, case.named(inputs)).stacks["vision"]
        batch, rows = seen.candidates.shape
        assert seen.candidates.sum(1).tolist() == [seen.stack.count] * batch
        for hidden in seen.hidden.values():
            assert hidden.shape[:2] == (batch, rows)
        for layer in seen.layers:
            assert layer.query.shape[0] == batch and layer.query.shape[2] == rows
            mass = layer.row(-1)
            assert mass.shape == (batch, layer.query.shape[1], rows)
            torch.testing.assert_close(mass.sum(-1), torch.ones(mass.shape[:2]))


def test_a_layer_that_attends_in_windows_is_no_tap_and_shows_no_focus() -> None:
    """Qwen's tower attends in six windows of 16; only its last block attends everywhere."""
    case = analysed("qwen")
    seen = case.observed().stacks["vision"]
    (last,) = seen.layers
    assert last.depth == 3 and last.query.shape == (1, 4, 96, 16)
    assert seen.entropies[:3] == (1.0, 1.0, 1.0) and seen.entropies[3] < 1.0
    assert seen.taps("vision:3", 4).layers == []
    core = qwen2_5_vl.model(attention="eager", seed=0).model.visual
    block = core.blocks[3]
    value = block.attn.qkv(block.norm1(seen.hidden["vision:3"])).unflatten(-1, (3, 4, 16))[:, :, 2]
    torch.testing.assert_close(last.value, value.transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_a_missing_unknown_or_misshapen_input_is_refused() -> None:
    case = analysed("llava")
    pixels, ids = case.sample.inputs
    good = case.named((pixels, ids))
    for bad, text in (
        ({"pixel_values": pixels}, "no value is given for the input 'input_ids'"),
        ({**good, "image": pixels}, "no input 'image'"),
        ({**good, "pixel_values": pixels[:1]}, "input 'pixel_values' is"),
        ({**good, "input_ids": ids.int()}, "input 'input_ids' is torch.int32"),
    ):
        with pytest.raises(InputError, match=text):
            observe(case.facts, bad)


def test_a_site_of_another_stack_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no site 'decoder:1'"):
        analysed("llava").observed().stacks["vision"].taps("decoder:1", 3)


def test_taps_hold_the_layers_before_the_site() -> None:
    seen = analysed("llava").observed().stacks["decoder"]
    taps = seen.taps("decoder:2", 5, seed=3, options={"start": 1})
    assert [layer.depth for layer in taps.layers] == [0, 1]
    assert (taps.keep, taps.seed, taps.relay, taps.layer_count) == (5, 3, -1, 4)
    assert taps.options == {"start": 1} and taps.carried is None
