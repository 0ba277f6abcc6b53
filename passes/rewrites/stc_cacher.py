"""STC's cacher: rows of a tower that changed little reuse what a reference frame made of them.

Paper: Wang et al., "Accelerating Streaming Video Large Language Models via Hierarchical Token
Compression", CVPR 2026, arXiv:2512.00891, its first part (code at 9b13ce0).  Every ``every``-th
call is a reference: all is computed, and every layer keeps its keys K, values V, attention output A
(behind the output projection) and what its feed-forward part gives, M.  In the calls between, with
h the rows that enter a layer:

    K     = keys of all rows of LN1 h
    s_i   = cos(K_i, Kref_i), heads one behind the other
    I     = the r T rows with the lowest s
    O_I   = attention(q_I, K, V)      V = Vref with rows I computed anew
    h    += Aref with rows I those of O_I
    h    += Mref with rows I those of the feed-forward part

r = 0.25; a reference every 2 calls, as in that code (its later README has 4).

Where we differ: the paper's text caches keys too; the code computes them, and so do we, for they
decide.  A call is a chunk; where it holds several images each has a reference of its own, that in
its place (the code: the last frame is that of all; the same at its chunks of one frame).  Learned
rows (a class token) are computed anew always.  Keys may have positions in them: they are those of
the same row in both.  Whoever wants a reference sooner (a cut in the film) gives ``reuse_age = 0``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.rewrites.reuse import Reuse


def changed(key: Tensor, before: Tensor) -> Tensor:
    """Return 1 - cos of each row's keys now and before, fp32 ``[B, N]``; 1 where one is 0."""
    now, then = (one.transpose(1, 2).flatten(2).float() for one in (key, before))
    sizes = now.square().sum(-1) * then.square().sum(-1)
    return 1.0 - (now * then).sum(-1) / torch.sqrt(sizes.clamp_min(1e-24))


REWRITE = Reuse(
    name="stc_cacher",
    paper="arXiv:2512.00891",
    roles=frozenset({"vision"}),
    changed=changed,
    options={"share": 0.25, "every": 2},
    notes="rows that changed little since a reference call reuse what layers made of them",
    licence="no licence file; its package says Apache",
    cost="O(N)",
)
