"""The model families that ``tokopt export`` captures, by the ``model_type`` of config.json.

Only here does a model's name matter: what happens to the captured graph depends on the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokopt.cli import capture_llava, capture_qwen2_5_vl, capture_vit
from tokopt.cli.capture import Capture
from tokopt.cli.capture_request import Request
from tokopt.ir.errors import UnsupportedError

Prepare = Callable[[Any, Request, Mapping[str, Any]], Capture]


@dataclass(frozen=True)
class Family:
    """How models of one kind are loaded and captured.

    ``auto_class`` maps config.json to the name of the library's auto class; ``prepare`` makes a
    ``Capture`` of the loaded model, the request and the image processor's settings.
    """

    auto_class: Callable[[Mapping[str, Any]], str]
    prepare: Prepare


def _image_text(config: Mapping[str, Any]) -> str:
    return "AutoModelForImageTextToText"


_VIT = Family(capture_vit.auto_class, capture_vit.prepare)

FAMILIES: Mapping[str, Family] = {
    "dinov2": _VIT,
    "dinov2_with_registers": _VIT,
    "llava": Family(_image_text, capture_llava.prepare),
    "qwen2_5_vl": Family(_image_text, capture_qwen2_5_vl.prepare),
    "vit": _VIT,
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
