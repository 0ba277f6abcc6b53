"""Qwen3-VL with two images in a prompt, and features of the tower added inside the decoder."""

from __future__ import annotations

from dataclasses import replace

from testsuite.zoo.qwen3_vl import REQUEST as ONE
from testsuite.zoo.qwen3_vl import model
from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import sample

from tokopt.cli.capture_request import Request

REQUEST = replace(ONE, images=2, prompt_length=41)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for two images in a prompt."""
    return sample("qwen3_vl_images", model, request, seed)
