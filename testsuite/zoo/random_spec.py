"""What a random transformer may look like: one choice per way real vision models differ."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """The choices for one model; ``draw`` makes a consistent one.

    ``layout`` names the order of batch B, tokens N, hidden H in the residual stream (``NH`` has no
    batch at all).  ``prefix`` rows from parameters stand before the patches.
    """

    layout: str  # BNH, NH, NBH
    patchify: str  # conv, linear
    prefix: int  # 0 to 5
    depth: int  # 2 to 4
    heads: int
    kv_heads: int  # divides heads
    pre_norm: bool
    rms: bool
    fused_qkv: bool  # only with kv_heads == heads
    attention: str  # sdpa, matmul, bmm
    scale_first: bool  # scale q, or the scores (explicit attention only)
    positions: str  # learned, rotary, none
    relative_bias: bool
    gated: bool
    pooling: str  # class, mean, mean_patches, none
    dynamic: bool  # batch is symbolic (not for NH)

    @property
    def batch_free(self) -> bool:
        """Whether values of this model carry no batch dimension."""
        return self.layout == "NH"


def draw(seed: int) -> Spec:
    """Return the spec of ``seed``; every combination that makes sense can come up."""
    dice = random.Random(seed)
    layout = dice.choice(["BNH", "BNH", "NH", "NBH"])
    prefix = dice.choice([0, 0, 1, 1, 2, 3, 4, 5])
    heads = dice.choice([2, 4])
    kv_heads = dice.choice([heads, heads, heads // 2])
    pooling = dice.choice(["class", "mean", "mean_patches", "none"])
    if prefix == 0 and pooling == "class":
        pooling = "mean"
    return Spec(
        layout=layout,
        patchify=dice.choice(["conv", "linear"]),
        prefix=prefix,
        depth=dice.randint(2, 4),
        heads=heads,
        kv_heads=kv_heads,
        pre_norm=dice.random() < 0.7,
        rms=dice.random() < 0.4,
        fused_qkv=kv_heads == heads and dice.random() < 0.5,
        attention=dice.choice(["sdpa", "sdpa", "matmul", "bmm"]),
        scale_first=dice.random() < 0.5,
        positions=dice.choice(["learned", "learned", "rotary", "none"]),
        relative_bias=dice.random() < 0.3,
        gated=dice.random() < 0.4,
        pooling=pooling,
        dynamic=layout != "NH" and dice.random() < 0.5,
    )
