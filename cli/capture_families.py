"""The model families that ``tokopt export`` captures, by the ``model_type`` of config.json.

Only here does a model's name matter: what happens to the captured graph depends on the graph.
A new model whose inputs have a known form is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tokopt.cli import capture_speech, capture_vit
from tokopt.cli.capture import Capture
from tokopt.cli.capture_cross_attention import cross_attended
from tokopt.cli.capture_frames import frames
from tokopt.cli.capture_images import (
    grouped_images,
    image_types,
    images,
    prefix_types,
    with_types,
)
from tokopt.cli.capture_logits import prepare as prompt
from tokopt.cli.capture_packed import packed
from tokopt.cli.capture_request import Request
from tokopt.cli.capture_tiles import images_or_sized, sized, tiles
from tokopt.cli.capture_visual import Form
from tokopt.ir.errors import UnsupportedError

Prepare = Callable[[Any, Request, Mapping[str, Any]], Capture]


@dataclass(frozen=True)
class Family:
    """How models of one kind are loaded and captured.

    ``auto_class`` maps config.json to the name of the library's (auto) class; ``prepare`` makes a
    ``Capture`` of the loaded model, the request and the image processor's settings; ``attention``
    is the library's name of the implementation to load it with.
    """

    auto_class: Callable[[Mapping[str, Any]], str]
    prepare: Prepare
    attention: str = "sdpa"


def _prompt(form: Form) -> Family:
    return Family(lambda config: "AutoModelForImageTextToText", partial(prompt, form))


_VIT = Family(capture_vit.auto_class, capture_vit.prepare)

FAMILIES: Mapping[str, Family] = {
    # pixels alone
    "clip": Family(lambda config: "CLIPVisionModel", capture_vit.prepare),
    "clip_vision_model": _VIT,
    "dinov2": _VIT,
    "dinov2_with_registers": _VIT,
    "dinov3_vit": _VIT,
    "pixtral": _VIT,
    "siglip": Family(lambda config: "SiglipVisionModel", capture_vit.prepare),
    "siglip_vision_model": _VIT,
    "swin": _VIT,
    "swinv2": replace(_VIT, attention="eager"),  # there is no other
    "vit": _VIT,
    # pixels and a prompt
    "aya_vision": _prompt(images),
    "blip-2": _prompt(images),
    "cohere2_vision": _prompt(images),
    "deepseek_vl": _prompt(images),
    "gemma3": _prompt(with_types(images, image_types)),
    "glm46v": _prompt(packed),
    "glm4v": _prompt(packed),
    "got_ocr2": replace(_prompt(images), attention="eager"),  # there is no other
    "idefics3": _prompt(grouped_images),
    "internvl": _prompt(images),
    "janus": _prompt(images),
    "lighton_ocr": _prompt(sized),
    "llama4": _prompt(images),
    "llava": _prompt(images_or_sized),
    "llava_next": _prompt(tiles),
    "llava_next_video": _prompt(frames),
    "llava_onevision": _prompt(tiles),
    "mistral3": _prompt(sized),
    "mllama": _prompt(cross_attended),
    "paligemma": _prompt(with_types(images, prefix_types)),
    "qwen2_5_vl": _prompt(packed),
    "qwen2_vl": _prompt(packed),
    "qwen3_vl": _prompt(packed),
    "qwen3_vl_moe": _prompt(packed),
    "smolvlm": _prompt(grouped_images),
    "vipllava": _prompt(images),
    # sound and a prompt
    "whisper": Family(lambda config: "AutoModelForSpeechSeq2Seq", capture_speech.prepare),
}


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """Return the family of ``config``; ``where`` is its folder, for the message."""
    kind = config["model_type"]
    if kind not in FAMILIES:
        raise UnsupportedError(
            f"models of type {kind!r} cannot be exported yet",
            where=where,
            expected="one of " + ", ".join(FAMILIES),
            hint="export it yourself with torch.export and give tokopt the .pt2",
        )
    return FAMILIES[kind]
