"""Text encoders as diffusion models have them: CLIP's, T5's with padding, T5 with its reader."""

from __future__ import annotations

import torch
from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import randomise
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

ROWS, START, END, PAD = 20, 158, 157, 159
LENGTHS = (9, 14)
"""At which row the texts of a batch end."""


def words(seed: int = 0, pad: int = PAD) -> Tensor:
    """Return ids ``[2, 20]``: a start, words, the end, padding."""
    drawn = torch.randint(3, 150, (2, ROWS), generator=torch.Generator().manual_seed(seed))
    drawn[:, 0] = START
    for item, end in enumerate(LENGTHS):
        drawn[item, end] = END
        drawn[item, end + 1 :] = pad
    return drawn


class Clip(nn.Module):
    """``ids -> (rows [B, N, C], the row at which each text ends [B, C])``."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        config = CLIPTextConfig(
            vocab_size=160,
            hidden_size=40,
            intermediate_size=72,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=ROWS,
            eos_token_id=END,
            bos_token_id=START,
            pad_token_id=PAD,
        )
        self.model = CLIPTextModel._from_config(config, attn_implementation=attention)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model(input_ids=input_ids)
        return found.last_hidden_state, found.pooler_output


def t5(layers: int = 3) -> T5Config:
    """Return tiny sizes, no two alike."""
    return T5Config(
        vocab_size=160, d_model=44, d_kv=10, d_ff=72, num_layers=layers, num_heads=4, pad_token_id=0
    )


class T5(nn.Module):
    """``(ids, mask) -> rows [B, N, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.model = T5EncoderModel(t5())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return found.last_hidden_state


class T5Reader(nn.Module):
    """``(ids, ids of the answer so far) -> logits``: the answer reads the words across."""

    def __init__(self) -> None:
        super().__init__()
        self.model = T5ForConditionalGeneration(t5(2))

    def forward(self, input_ids: Tensor, answer: Tensor) -> Tensor:
        found = self.model(input_ids=input_ids, decoder_input_ids=answer, use_cache=False)
        return found.logits


def _prepared(module: nn.Module) -> nn.Module:
    return randomise(module.eval().requires_grad_(False), 0)


def clip() -> Sample:
    """Export CLIP's text encoder, rows and the row at the end of the text."""
    inputs, twin = (words(),), _prepared(Clip("eager"))
    return Sample("clip_text", capture(_prepared(Clip("sdpa")), inputs), inputs, twin)


def t5_encoder() -> Sample:
    """Export T5's encoder with a mask of its padding."""
    ids, module = words(pad=0), _prepared(T5())
    inputs = (ids, (ids != 0).long())
    return Sample("t5_encoder", capture(module, inputs), inputs, module)


def t5_reader() -> Sample:
    """Export T5 with the decoder that reads its encoder."""
    module, inputs = _prepared(T5Reader()), (words(), words(1)[:, :7])
    return Sample("t5_reader", capture(module, inputs), inputs, module)
