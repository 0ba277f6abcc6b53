"""The methods that remember, in numpy, row by row, each carrying its own state."""

from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@dataclass
class StcStream:
    """STC's pruner on one item: a chunk of tokens ``[n, C]`` and their frames in, kept rows out."""

    frames: int
    keep: int
    means: list[Array] = field(default_factory=list)

    def __call__(self, tokens: Array, frame: Array) -> list[int]:
        z = unit(tokens.astype(np.float64))
        self.means.append(z.mean(0))
        memory = unit(np.mean(self.means, axis=0))

        def kernels(apart: Array) -> float:
            return sum(np.exp(-(apart @ apart) / (2 * a)) for a in (0.125, 0.25, 0.5, 1, 2))

        kept: list[int] = []
        for number in range(self.frames):
            rows = np.flatnonzero(frame == number)
            anchor = z[rows].mean(0)
            novel = {r: kernels(z[r] - anchor) + kernels(z[r] - memory) for r in rows}
            quota = self.keep // self.frames + (number < self.keep % self.frames)
            kept += sorted(rows, key=lambda r, novel=novel: (novel[r], r))[:quota]
        return sorted(int(row) for row in kept)


@dataclass
class VlaStream:
    """VLA-Pruner on one item: attention ``[H, N, N]``, embeddings ``[N, C]``, visual rows."""

    keep: int
    steps: list[Array] = field(default_factory=list)

    def __call__(self, attention: Array, embedded: Array, visual: Array) -> list[int]:
        mean = attention.astype(np.float64).mean(0)
        semantic, last = mean.mean(0)[visual], mean[-1][visual]
        smooth = sum((0.8**i * s for i, s in enumerate(self.steps[:-4:-1], 1)), 0 * semantic)
        acted = smooth if self.steps else semantic
        union = sorted({int(r) for x in (semantic, acted) for r in np.argsort(-x)[: self.keep]})
        self.steps.append(last)
        z = unit(embedded.astype(np.float64)[visual])
        apart = 1 - z @ z.T
        others = {r: min(apart[r, s] for s in union if s != r) for r in union}
        chosen = [max(union, key=lambda r: others[r])]
        while len(chosen) < self.keep:
            left = [r for r in union if r not in chosen]
            chosen.append(max(left, key=lambda r: min(apart[r, c] for c in chosen)))
        return sorted(int(visual[row]) for row in chosen)
