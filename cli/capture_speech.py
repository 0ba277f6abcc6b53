"""How a speech encoder and decoder are captured: log-mel features and ids to logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.export import Dim

from tokopt.cli.capture import Capture, Inputs
from tokopt.cli.capture_call import NamedCall
from tokopt.cli.capture_logits import special_tokens
from tokopt.cli.capture_prompt import sample_prompt
from tokopt.cli.capture_request import SPARE_TEXT, Request, noise
from tokopt.cli.capture_tracing import index_masks
from tokopt.ir.errors import InputError

NAMES = ("input_features", "decoder_input_ids")


class SpeechLogits(NamedCall):
    """``(input_features [B,mel,T], decoder_input_ids [B,S]) -> logits [B,S,V]``, no cache."""

    def __init__(self, model: Any, names: Sequence[str] = NAMES) -> None:
        super().__init__(model, names)

    def call(self, given: dict[str, Any]) -> Tensor:
        """Return the logits of every position."""
        with index_masks():
            return self.model(**given, use_cache=False).logits


class PlainSpeech(SpeechLogits):
    """The model called as its library means it to be."""

    def call(self, given: dict[str, Any]) -> Tensor:
        """Return the logits of every position."""
        return self.model(**given, use_cache=False).logits


def prepare(model: Any, request: Request, processor: Mapping[str, Any]) -> Capture:
    """Build samples of full windows of sound (the model takes no others) and a decoder prompt."""
    config = model.config
    asked = (request.image_size, request.frames, request.images > 1, request.padding)
    if any(asked):
        raise InputError(
            f"{config.model_type} hears sound and reads unpadded ids",
            expected="no --image-size, --images, --frames or --padding",
        )
    longest = config.max_target_positions
    length = request.prompt_length or min(SPARE_TEXT, longest - 7)
    if not 2 <= length <= longest:
        raise InputError(
            f"a prompt of {length} tokens does not fit",
            expected=f"2 to {longest} (the model's limit)",
            hint="--prompt-length",
        )
    steps = 2 * config.max_source_positions  # the encoder's second convolution halves them

    def sample(batch: int, rows: int, seed: int) -> Inputs:
        ids = sample_prompt(
            batch,
            rows,
            visual=0,
            token=config.decoder_start_token_id,
            vocabulary=config.vocab_size,
            reserved=special_tokens(config),
            images=0,
            seed=seed,
        )
        return noise(batch, config.num_mel_bins, steps, seed=seed, dtype=model.dtype), ids

    samples = [sample(*size, seed) for seed, size in enumerate(request.sizes(length))]
    free = {0: Dim("batch", min=1)} if request.free_batch else {}
    tokens = {1: Dim("length", min=2)} if request.free_length else {}
    shapes = (free, {**free, **tokens}) if request.dynamic else None
    facts: dict[str, int | str] = {"image_size": f"{config.num_mel_bins}x{steps}"}
    facts |= {"visual_tokens": config.max_source_positions, "prompt_length": length}
    module, plain = SpeechLogits(model).eval(), PlainSpeech(model).eval()
    return Capture(module, plain, samples[0], tuple(samples[1:]), shapes, facts)
