"""LLaVA: CLIP tower with a class token, two-layer projector, Llama decoder with grouped heads."""

from __future__ import annotations

from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import noise, randomise
from torch import Tensor
from torch.export import Dim
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tokopt.cli.capture_images import images
from tokopt.cli.capture_logits import PlainLogits, PromptLogits
from tokopt.cli.capture_prompt import sample_prompt
from tokopt.cli.capture_request import Request

IMAGE_SIZE, PATCH = 48, 8
VISUAL = (IMAGE_SIZE // PATCH) ** 2
TEXT_VOCABULARY, IMAGE_TOKEN = 199, 199


def config(*, attention: str, layers: int = 4) -> LlavaConfig:
    """Return the tiny configuration; ``layers`` for each of tower and decoder."""
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=IMAGE_TOKEN + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=VISUAL,
        attn_implementation=attention,
    )


def model(*, attention: str, seed: int, layers: int = 4) -> LlavaForConditionalGeneration:
    """Return the model with weights that depend on ``seed`` and not on ``attention``."""
    built = LlavaForConditionalGeneration(config(attention=attention, layers=layers))
    return randomise(built.eval().requires_grad_(False), seed)


def inputs(batch: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return pixels and ids; ``length`` counts the 36 visual placeholders too."""
    ids = sample_prompt(
        batch, length, visual=VISUAL, token=IMAGE_TOKEN, vocabulary=TEXT_VOCABULARY, seed=seed
    )
    return noise(batch, 3, IMAGE_SIZE, IMAGE_SIZE, seed=seed), ids


def build(
    batch: int = 1,
    *,
    length: int = VISUAL + 9,
    dynamic: bool = False,
    attention: str = "sdpa",
    seed: int = 0,
    layers: int = 4,
) -> Sample:
    """Export with a static ``batch``, or (``dynamic``) with free batch and prompt length.

    A dynamic program is traced at batch 2 (at least): sizes 0 and 1 would be specialised.
    """
    batch = max(batch, 2) if dynamic else batch
    traced = inputs(batch, length, seed)
    shapes = None
    others = [inputs(batch, length, seed + 1)]
    if dynamic:
        size, tokens = Dim("batch", min=1, max=64), Dim("length", min=VISUAL, max=256)
        shapes = ({0: size}, {0: size, 1: tokens})
        others += [inputs(1, length, seed + 2), inputs(3, length + 5, seed + 3)]
        others += [inputs(1, VISUAL + 2, seed + 4)]
    core, plain = (model(attention=kind, seed=seed, layers=layers) for kind in (attention, "eager"))
    form, names = images(core, Request(), {}), ("pixel_values", "input_ids")
    exported = capture(PromptLogits(core, form, names), traced, shapes)
    twin = PlainLogits(plain, form, names).eval()
    kind = f"{'dynamic' if dynamic else f'b{batch}'}-{attention}"
    return Sample(f"llava-{kind}", exported, traced, twin, tuple(others))
