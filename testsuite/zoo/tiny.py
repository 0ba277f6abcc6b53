"""What the builders of Hugging Face models share: tiny sizes, weights, and the way to a Sample.

All sizes differ (width, head width, rows, vocabulary, ...): a compiler that takes one for another
is caught.  The sample is what ``tokopt export`` makes of the model; the eager twin is the model
called as its library means it to be, with attention spelled out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from testsuite.zoo.sample import Sample
from testsuite.zoo.weights import randomise

from tokopt.cli.capture_families import FAMILIES
from tokopt.cli.capture_request import Request

SIDE, PATCH = 48, 8
PATCHES = (SIDE // PATCH) ** 2
IMAGE, VIDEO, START, END = 150, 151, 152, 153
VISION: Mapping[str, Any] = dict(
    hidden_size=40,
    intermediate_size=72,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=SIDE,
    patch_size=PATCH,
)
TEXT: Mapping[str, Any] = dict(
    hidden_size=56,
    intermediate_size=88,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=160,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def tiny(kind: Any, config: Any, attention: str, seed: int) -> Any:
    """Return a ``kind`` of ``config``, eval; weights depend on ``seed``, not on ``attention``."""
    with torch.random.fork_rng():  # some gates keep what the library draws for them
        torch.manual_seed(seed)
        model = kind._from_config(config, attn_implementation=attention)
    return randomise(model.eval().requires_grad_(False), seed)


def sample(
    name: str,
    model: Callable[[str, int], Any],
    request: Request,
    seed: int,
    *,
    attention: str = "sdpa",
) -> Sample:
    """Export ``model(attention, seed)`` as ``tokopt export`` does."""
    traced = model(attention, seed)
    prepare = FAMILIES[traced.config.model_type].prepare
    with torch.no_grad():
        capture = prepare(traced, request, {})
        twin = prepare(model("eager", seed), request, {}).reference
    return Sample(name, capture.trace(), capture.inputs, twin, capture.others)
