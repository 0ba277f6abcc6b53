"""The small Qwen2-VL: its sizes, and its tower over a batch of pictures.

transformers' own Qwen2VLForConditionalGeneration: no CLS, 24 x 24 patches of 6 px with axial rotary
positions, merged 2 x 2 into TOKENS rows, a Qwen2 decoder with grouped key-value heads and positions
on three axes.  Random weights; build.py loads the trained ones.
"""

from typing import Any

import torch
from testsuite.models.canvas import GRID, PATCH, TOKENS
from testsuite.models.digits import BOS, IMAGE, PROMPT, TEXT, WORDS
from torch.nn import functional as F
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

WIDTH, NARROW, MERGE, FRAMES = 128, 64, 2, 2
FINE = PATCH // MERGE
FEATURES = 3 * FRAMES * FINE * FINE


def qwen2vl() -> Qwen2VLForConditionalGeneration:
    """The model with fresh weights, in eval mode, fp32, sdpa attention."""
    vision = dict(
        depth=4,
        embed_dim=NARROW,
        hidden_size=WIDTH,
        num_heads=4,
        mlp_ratio=2,
        patch_size=FINE,
        spatial_merge_size=MERGE,
        temporal_patch_size=FRAMES,
    )
    text = dict(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        bos_token_id=BOS,
        eos_token_id=BOS,
        pad_token_id=BOS,
    )
    config = Qwen2VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        video_token_id=WORDS,  # no word: there are no videos
        vision_start_token_id=WORDS,
        vision_end_token_id=WORDS,
        tie_word_embeddings=False,
    )
    config._attn_implementation = "sdpa"
    model = Qwen2VLForConditionalGeneration(config)
    model.train(False)
    return model


def patches(pixel_values: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, SIDE, SIDE] as the processor packs them: [B, TOKENS, 4, FEATURES]."""
    size = len(pixel_values)
    cut = pixel_values.reshape(size, 3, GRID, MERGE, FINE, GRID, MERGE, FINE)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(size, TOKENS, MERGE**2, 3, 1, FINE, FINE)
    return cut.expand(-1, -1, -1, -1, FRAMES, -1, -1).flatten(3)


def _packed(
    module: torch.nn.Module, *operands: torch.Tensor, items: int, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attention [1, H, B * n, D] of B pictures of n patches in one call, not in B."""
    with torch.autocast("cpu", enabled=False):
        apart = [o[0].float().unflatten(1, (items, -1)).transpose(0, 1) for o in operands]
        out, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, *apart, **options)
    return out.flatten(0, 1)[None], None


ALL_ATTENTION_FUNCTIONS.register("packed", _packed)


def visual_rows(
    model: Qwen2VLForConditionalGeneration,
    pixel_values: torch.Tensor,
    index: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The merged rows [B, TOKENS, WIDTH] and their mean [B, WIDTH].

    With ``index`` [B, k] the tower sees only these 2 x 2 groups of patches (dropout in training);
    the rows of the others are zero.
    """
    tower, size = model.model.visual, len(pixel_values)
    shown = patches(pixel_values)
    at = torch.arange(TOKENS).expand(size, -1) if index is None else index
    shown = shown.gather(1, at[..., None, None].expand(-1, -1, MERGE**2, FEATURES))
    fine = torch.arange(MERGE)
    row = (MERGE * (at // GRID))[..., None, None] + fine[:, None]
    column = (MERGE * (at % GRID))[..., None, None] + fine
    place = torch.stack(torch.broadcast_tensors(row, column), -1).reshape(-1, 2)
    kernel = tower.patch_embed.proj.weight  # as a matrix: its convolution is slow on CPUs
    hidden = F.linear(shown.reshape(-1, FEATURES), kernel.flatten(1))
    turned = tower.rotary_pos_emb(hidden, place)
    ends = torch.tensor([0, len(hidden)])
    before, tower.config._attn_implementation = tower.config._attn_implementation, "packed"
    for block in tower.blocks:
        hidden = block(hidden, cu_seqlens=ends, position_embeddings=turned, items=size)
    tower.config._attn_implementation = before
    rows = tower.merger(hidden).unflatten(0, (size, -1))
    if index is None:
        return rows, rows.mean(1)
    empty = rows.new_zeros(size, TOKENS, WIDTH)
    return empty.scatter(1, index[..., None].expand(-1, -1, WIDTH), rows), rows.mean(1)


def position_ids(place: torch.Tensor) -> torch.Tensor:
    """Three-axis positions [3, ...] of places in the prompt [...]: time, row, column."""
    cell = torch.arange(TOKENS)
    after = torch.arange(TEXT) + 1 + GRID
    zero = torch.zeros(1, dtype=torch.long)
    axes = (torch.zeros_like(cell), cell // GRID, cell % GRID)
    table = torch.stack([torch.cat([zero, 1 + axis, after]) for axis in axes])
    assert table.shape[1] == PROMPT
    return table[:, place]
