"""Mistral3 with two images in a prompt: one tower run, each image unfolded by itself."""

from __future__ import annotations

from dataclasses import replace

from testsuite.zoo.mistral3 import REQUEST as ONE
from testsuite.zoo.mistral3 import model
from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import sample

from tokopt.cli.capture_request import Request

REQUEST = replace(ONE, images=2, prompt_length=25)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for two images in a prompt."""
    return sample("mistral3_images", model, request, seed)
