"""Qwen2.5-VL: rank-2 vision values, windowed blocks, 2x2 merger, three-axis rotary positions."""

from __future__ import annotations

from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import noise, randomise
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tokopt.cli.capture_logits import PlainLogits, PromptLogits
from tokopt.cli.capture_packed import packed
from tokopt.cli.capture_prompt import sample_prompt
from tokopt.cli.capture_request import Request
from tokopt.cli.capture_visual import Visual

PATCH, TEMPORAL, MERGE, CHANNELS = 8, 2, 2, 3
Grid = tuple[int, int, int]
NAMES = ("pixel_values", "input_ids", "position_ids")
TEXT_VOCABULARY, IMAGE_TOKEN, VIDEO_TOKEN = 196, 196, 197


def config(*, attention: str, vision_layers: int = 4, layers: int = 4) -> Qwen2_5_VLConfig:
    """Return the tiny configuration: windows of 4x4 patches, full attention in the last block."""
    vision = dict(
        depth=vision_layers,
        hidden_size=64,
        out_hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        patch_size=PATCH,
        temporal_patch_size=TEMPORAL,
        spatial_merge_size=MERGE,
        window_size=4 * PATCH,
        fullatt_block_indexes=(vision_layers - 1,),
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=200,
        rope_parameters=rope,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=198,
        vision_end_token_id=199,
        attn_implementation=attention,
    )


def model(
    *, attention: str, seed: int, vision_layers: int = 4, layers: int = 4
) -> Qwen2_5_VLForConditionalGeneration:
    """Return the model with weights that depend on ``seed`` and not on ``attention``."""
    sizes = config(attention=attention, vision_layers=vision_layers, layers=layers)
    built = Qwen2_5_VLForConditionalGeneration(sizes)
    return randomise(built.eval().requires_grad_(False), seed)


def form(core: Qwen2_5_VLForConditionalGeneration, grid: Grid) -> Visual:
    """Return the visual input of one image of ``grid`` patches."""
    return packed(core, Request((grid[1] * PATCH, grid[2] * PATCH)), {})


def inputs(
    core: Qwen2_5_VLForConditionalGeneration, grid: Grid, text: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches, ids of ``text`` tokens around the image, and the positions HF gives them."""
    patches = grid[0] * grid[1] * grid[2]
    visual = patches // MERGE**2
    ids = sample_prompt(
        1, visual + text, visual=visual, token=IMAGE_TOKEN, vocabulary=TEXT_VOCABULARY, seed=seed
    )
    return (
        noise(patches, CHANNELS * TEMPORAL * PATCH**2, seed=seed),
        ids,
        form(core, grid).extras["position_ids"].sample(ids, None),
    )


def build(
    batch: int = 1,
    *,
    grid: Grid = (1, 8, 12),
    text: int = 10,
    attention: str = "sdpa",
    seed: int = 0,
    layers: int = 4,
) -> Sample:
    """Export one image of ``grid`` patches (24 merged tokens, 6 windows by default), batch 1."""
    assert batch == 1, "patches of all images are packed: the batch is not an axis of this model"
    core, plain = (
        model(attention=kind, seed=seed, vision_layers=layers, layers=layers)
        for kind in (attention, "eager")
    )
    traced = inputs(core, grid, text, seed)
    others = (inputs(core, grid, text, seed + 1), inputs(core, grid, text, seed + 2))
    exported = capture(PromptLogits(core, form(core, grid), NAMES), traced)
    twin = PlainLogits(plain, form(plain, grid), NAMES).eval()
    shape = "x".join(map(str, grid))
    return Sample(f"qwen2_5_vl-{shape}-{attention}", exported, traced, twin, others)
