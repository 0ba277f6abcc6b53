"""Random: a control. A seeded random subset of the visual tokens, the same on every target.

A row's score is a keyed permutation of its number among the candidates: four rounds of
``x <- (x + key)^3 mod p`` (as MiMC does, Albrecht et al., ASIACRYPT 2016).  Cubing permutes the
residues of a prime p = 2 mod 3, so no two rows tie.  Every product stays below 2^48 (exact in
int64) and p < 2^24 (exact in fp32): no target can round it differently.  Neighbouring rows get
unrelated scores; evenly spread ones are the other control, stride.

All items of a batch drop the same numbers.  The numbers restart at every stage: a stage draws among
the rows that are there.  Where rows leave in groups, groups are numbered.
"""

from __future__ import annotations

import hashlib

from torch import Tensor

from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.rows import group_of
from tokopt.passes.methods.schedules import before_decoder

PRIME = 16777199
ROUNDS = 4


def score(taps: Taps) -> Tensor:
    """Return integers below ``PRIME``, distinct per group of rows, as fp32 ``[B, N]``."""
    mixed = group_of(taps).clamp_min(0)
    for number in range(ROUNDS):
        mixed = (mixed + _key(taps.seed, number)) % PRIME
        mixed = mixed * mixed % PRIME * mixed % PRIME
    return mixed.float()


def _key(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % PRIME


METHOD = Method(
    name="random",
    paper="control",
    licence="no other code",
    cost="O(N)",
    roles=frozenset({"vision", "decoder", "resampler"}),
    score=score,
    schedule=before_decoder,
    notes="a seeded random subset, the same on every target",
)
