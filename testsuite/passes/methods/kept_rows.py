"""The reference selection: highest score first, ties to the lower row, plain Python."""

import numpy as np


def kept_rows(scores: np.ndarray, candidates: np.ndarray, keep: int) -> list[list[int]]:
    """Return the kept rows of each item of ``scores [B, N]``, ascending."""
    result = []
    for item, allowed in zip(scores.tolist(), candidates.tolist(), strict=True):
        rows = [row for row, flag in enumerate(allowed) if flag]
        result.append(sorted(sorted(rows, key=lambda row: (-item[row], row))[:keep]))
    return result
