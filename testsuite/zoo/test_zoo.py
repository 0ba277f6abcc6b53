import functools
from collections.abc import Callable

import pytest
import torch
from testsuite.exhaustive import thinned
from testsuite.zoo import dinov2, handvit, llava, qwen2_5_vl, random_transformer
from testsuite.zoo.random_spec import draw
from testsuite.zoo.sample import Sample
from torch import Tensor, nn
from torch.export import ExportedProgram

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
RANDOM_SEEDS = range(24)

BUILDERS: dict[str, Callable[[], Sample]] = {
    "llava": llava.build,
    "llava_b2": lambda: llava.build(2),
    "llava_dynamic": lambda: llava.build(dynamic=True),
    "llava_explicit": lambda: llava.build(attention="eager"),
    "llava_dynamic_explicit": lambda: llava.build(dynamic=True, attention="eager"),
    "qwen2_5_vl": qwen2_5_vl.build,
    "dinov2": dinov2.build,
    "dinov2_dynamic": lambda: dinov2.build(dynamic=True, with_class=True),
    "handvit": handvit.build,
    "handvit_dynamic": lambda: handvit.build(dynamic=True),
}


def differences(sample: Sample) -> list[float]:
    """Largest difference to eager per input, relative to the largest output (at least 1)."""
    module, found = sample.exported.module(), []
    for inputs in sample.all_inputs:
        with torch.no_grad():
            want, got = sample.eager(*inputs), module(*inputs)
        assert got.shape == want.shape
        found.append(float((got - want).abs().max() / max(1.0, float(want.abs().max()))))
    return found


@functools.cache
def built(name: str) -> Sample:
    return BUILDERS[name]()


def count(exported: ExportedProgram, operator: str) -> int:
    return sum(operator in str(node.target) for node in exported.graph.nodes)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_exported_program_equals_the_eager_model_at_every_size(name: str) -> None:
    sample = built(name)
    assert sample.exported.example_inputs[0] is not None
    assert max(differences(sample)) <= TOLERANCE


@pytest.mark.parametrize("seed", thinned(RANDOM_SEEDS, 3))
def test_a_random_transformer_equals_its_explicit_twin(seed: int) -> None:
    sample = random_transformer.sample(seed)
    assert max(differences(sample)) <= TOLERANCE, draw(seed)


def test_two_builds_of_one_seed_are_the_same_program() -> None:
    torch.manual_seed(1)
    first = random_transformer.sample(3)
    torch.manual_seed(2)  # the caller's generator must not matter
    second = random_transformer.sample(3)
    assert str(first.exported.graph) == str(second.exported.graph)
    with torch.no_grad():
        assert torch.equal(first.eager(*first.inputs), second.eager(*second.inputs))


def test_the_random_seeds_reach_every_choice_of_the_spec() -> None:
    specs = [draw(seed) for seed in RANDOM_SEEDS]
    for name, choices in {
        "layout": {"BNH", "NH", "NBH"},
        "patchify": {"conv", "linear"},
        "attention": {"sdpa", "matmul", "bmm"},
        "positions": {"learned", "rotary", "none"},
        "pooling": {"class", "mean", "mean_patches", "none"},
        "prefix": {0, 1, 2, 3, 4, 5},
        "depth": {2, 3, 4},
        **{flag: {False, True} for flag in ("pre_norm", "rms", "fused_qkv", "gated", "dynamic")},
        "relative_bias": {False, True},
    }.items():
        assert {getattr(spec, name) for spec in specs} == choices, name
    assert any(spec.kv_heads < spec.heads for spec in specs)


def test_dynamic_llava_has_other_image_positions_in_every_item_and_two_prompt_lengths() -> None:
    sample = built("llava_dynamic")
    lengths, batches = set(), set()
    for pixels, ids in sample.all_inputs:
        starts = (ids == llava.IMAGE_TOKEN).int().argmax(1)
        assert len(set(starts.tolist())) == len(ids) == len(pixels)
        lengths.add(ids.shape[1])
        batches.add(len(ids))
    assert {1, 2, 3} <= batches and len(lengths) >= 2


def test_every_qwen_block_but_the_last_attends_within_windows() -> None:
    sample = built("qwen2_5_vl")
    windows = 6  # 2x3 windows of 4x4 patches on an 8x12 grid
    assert count(sample.exported, "scaled_dot_product_attention") == 3 * windows + 1 + 4


def test_the_explicit_variant_spells_its_attention_out() -> None:
    sample = built("llava_explicit")
    assert count(sample.exported, "scaled_dot_product") == 0
    assert count(sample.exported, "softmax") == 8


class _Uniform(nn.Module):
    """The model with attention that looks at all keys alike."""

    def __init__(self, model: nn.Module, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        original = torch.Tensor.softmax
        patch.setattr(torch.Tensor, "softmax", lambda x, dim: original(torch.zeros_like(x), dim))
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs)


def test_outputs_depend_strongly_on_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = built("handvit")
    want = sample.eager(*sample.inputs)
    got = _Uniform(sample.eager, monkeypatch)(*sample.inputs)
    assert float((got - want).std()) > 0.1 * float(want.std())
