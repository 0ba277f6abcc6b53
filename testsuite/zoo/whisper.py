"""Whisper: an encoder of sound and a decoder with cross-attention: an axis that is no image."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import TEXT, sample, tiny
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tokopt.cli.capture_request import Request

REQUEST = Request(prompt_length=9)


def model(attention: str, seed: int) -> Any:
    """Return the tiny model: 46 steps of 20 mel bands become 23 rows."""
    config = WhisperConfig(
        vocab_size=TEXT["vocab_size"],
        num_mel_bins=20,
        d_model=TEXT["hidden_size"],
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=72,
        decoder_ffn_dim=88,
        max_source_positions=23,
        max_target_positions=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    return tiny(WhisperForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for a window of sound and a decoder prompt."""
    return sample("whisper", model, request, seed)
