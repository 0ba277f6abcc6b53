import dataclasses

import numpy as np
import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, failures, plan
from testsuite.passes.methods.drawn_taps import drawn_taps
from testsuite.passes.methods.test_received import matrix
from testsuite.zoo import llava

from tokopt.ir.blocks import find_blocks
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.plan import Plan, Stage
from tokopt.passes import block_tap
from tokopt.passes.fit import fit
from tokopt.passes.methods.method import LayerTap, Placement, Setting, Taps
from tokopt.passes.methods.registry import find_method
from tokopt.passes.methods.transprune import METHOD, schedule, transition
from tokopt.passes.oracle.oracle import run_oracle


def turned(taps: Taps, item: int, layers: list[LayerTap], code: bool) -> np.ndarray:
    """TTV of one item, a row at a time, in double precision."""
    inside = taps.candidates[item].numpy()
    total = np.zeros(len(inside))
    for layer in layers:
        for before, after in layer.blocks:
            rows = list(
                zip(before[item].double().numpy(), after[item].double().numpy(), strict=True)
            )
            stretch = np.array([np.linalg.norm(b) / np.linalg.norm(a) for a, b in rows])
            alike = np.array([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in rows])
            weight = np.exp(1 - alike) if code else np.exp(1 - np.abs(alike)) * inside
            total += stretch * weight / weight.sum()
    return total


def asked(taps: Taps, item: int, layer: LayerTap) -> np.ndarray:
    """The mean attention of the text rows behind the image."""
    visual = taps.candidates[item].nonzero()[:, 0].tolist()
    assert taps.text is not None
    text = [row for row in taps.text[item].nonzero()[:, 0].tolist() if row > max(visual)]
    return np.asarray(matrix(layer)[item][text].mean(0))


@pytest.mark.parametrize("compat", ["paper", "code"])
@pytest.mark.parametrize("alpha", [0.5, 0.0, 1.0])
@pytest.mark.parametrize("later", [False, True])
def test_the_score_is_transition_and_attention(compat: str, alpha: float, later: bool) -> None:
    taps = drawn_taps("decoder", options={"compat": compat, "alpha": alpha}, layers=3)
    ahead = drawn_taps("decoder", seed=4, layers=1).layers[0]
    memory = torch.rand(2, 14, generator=torch.Generator().manual_seed(1)) if later else None
    taps = dataclasses.replace(taps, ahead=ahead, passed=memory)
    found = METHOD.score(taps)
    for item, inside in enumerate(taps.candidates.numpy()):
        total = turned(
            taps, item, list(taps.layers if later else taps.layers[-1:]), compat == "code"
        )
        total = total + (0 if memory is None else memory[item].double().numpy())
        look = asked(taps, item, ahead)
        wanted = alpha * total / total[inside].sum() + (1 - alpha) * look / look[inside].sum()
        np.testing.assert_allclose(found[item].numpy()[inside], wanted[inside], rtol=2e-5)
        remembered = transition(taps)[item].numpy()[inside]
        np.testing.assert_allclose(remembered, total[inside], rtol=2e-5)


def test_without_a_layer_behind_the_site_the_one_before_it_looks() -> None:
    taps = drawn_taps("decoder", options={"alpha": 0.0})
    found = METHOD.score(taps)
    for item, inside in enumerate(taps.candidates.numpy()):
        look = asked(taps, item, taps.layers[-1])[inside]
        np.testing.assert_allclose(found[item].numpy()[inside], look / look.sum(), rtol=2e-5)


def test_the_released_setting() -> None:
    """Of 576: 504, 360 and 72 behind layers 7, 9 and 12."""
    found = schedule(Setting("decoder", 32, 576, 72, consumer=True))
    assert found == (Placement(7, 504), Placement(9, 360), Placement(12, 72))
    assert {p.keep for p in schedule(Setting("decoder", 32, 576, 576))} == {576}


@pytest.mark.parametrize("name", ["llava_explicit", "qwen"])
def test_stages_that_remember_pass_every_gate(name: str) -> None:
    family = analysed(name)
    stages = "decoder:1 transprune 18, decoder:2 fastv 15, decoder:3 transprune 9"
    assert failures(checked(family, plan(stages)), [every_input(family)[0]]) == ""


def alone(*stages: str | int) -> Plan:
    """Transition alone decides: attention would hide a wrong one on a small model."""
    pairs = zip(stages[::2], stages[1::2], strict=True)
    return Plan(tuple(Stage(str(s), "transprune", int(k), {"alpha": 1.0}) for s, k in pairs))


def test_blocks_in_the_wrong_order_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded bug: what a block adds is read as what it reads, and the other way round."""
    read = block_tap.read_blocks

    def wrong(operands, blocks, left, view):  # type: ignore[no-untyped-def]
        turned = [dataclasses.replace(b, input=b.output, output=b.input) for b in blocks]
        return read(operands, turned, left, view)

    family = analysed("llava")
    assert not failures(checked(family, alone("decoder:2", 9)), [every_input(family)[0]])
    monkeypatch.setattr("tokopt.passes.reading.read_blocks", wrong)
    done = checked(family, alone("decoder:2", 9))
    assert "selection" in failures(done, [every_input(family)[0]])


def test_a_memory_that_is_lost_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    family = analysed("llava")
    chosen = alone("decoder:1", 18, "decoder:2", 9)
    assert not failures(checked(family, chosen), [every_input(family)[0]])
    monkeypatch.setattr("tokopt.passes.stage.passed_rows", _zeros)
    assert "selection" in failures(checked(family, chosen), [every_input(family)[0]])


def _zeros(work, reading, method):  # type: ignore[no-untyped-def]
    return work.splice(
        lambda *given: torch.zeros_like(reading.build(given)[0].candidates, dtype=torch.float32),
        list(reading.operands),
    )


def test_transitions_are_those_the_library_computes() -> None:
    """Inputs and outputs of both blocks, from hooks on the model's own modules."""
    family = analysed("llava")
    pixels, ids = llava.inputs(2, llava.VISUAL + 9, 0)
    model = llava.model(attention="sdpa", seed=0)
    layer = model.model.language_model.layers[1]
    seen: dict[str, torch.Tensor] = {}
    for name, module in (("attention", layer.self_attn), ("mlp", layer.mlp)):
        norm = layer.input_layernorm if name == "attention" else layer.post_attention_layernorm
        norm.register_forward_hook(lambda _, __, out, n=name: seen.__setitem__(f"{n}_in", out))
        module.register_forward_hook(
            lambda _, __, out, n=name: seen.__setitem__(
                f"{n}_out", out[0] if isinstance(out, tuple) else out
            )
        )
    with torch.no_grad():
        model(pixel_values=pixels, input_ids=ids, use_cache=False)
    found = run_oracle(
        family.facts, plan("decoder:2 transprune 9"), every_input(family)[0], find_method
    ).stages[0]
    assert found.passed is not None
    for item, inside in enumerate(found.candidates.numpy()):
        total = np.zeros(len(inside))
        for block in ("attention", "mlp"):
            a, b = (seen[f"{block}_{end}"][item].double().numpy() for end in ("in", "out"))
            long, short = np.linalg.norm(b, axis=1), np.linalg.norm(a, axis=1)
            weight = np.exp(1 - np.abs((a * b).sum(1) / long / short)) * inside
            total += long / short * weight / weight.sum()
        np.testing.assert_allclose(found.passed[item].numpy()[inside], total[inside], rtol=1e-3)


def test_a_layer_with_one_block_has_one_and_every_other_two() -> None:
    for name, count in (("llava", 2), ("qwen", 2), ("dino", 2), ("handvit", 2), ("flat", 1)):
        facts = analysed(name).facts
        for stack in facts.stacks:
            blocks = find_blocks(stack.stack, facts.dims, facts.dependence)
            assert [len(inside) for inside in blocks] == [count] * len(stack.stack.layers)


def test_a_stream_that_tells_no_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_tap, "find_blocks", lambda stack, *_: ((),) * len(stack.layers))
    with pytest.raises(UnsupportedError, match="layer 0 of decoder does not tell") as error:
        fit(analysed("llava").facts, METHOD, 0.5)
    assert "pdrop" in str(error.value)
