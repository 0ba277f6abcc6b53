"""Eval accuracy: how many samples a program answers right, per kind, with Wilson's interval.

An answer is the argmax of the last row of the first output: the next token of a prompt, the class
of a picture.  The interval is E. B. Wilson's of 1927: 95 % of such intervals hold the accuracy on
all pictures the samples were drawn from, also near 0 and 1 and for few samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from tokopt.cli.eval_batch import Batch
from tokopt.ir.errors import InputError

Z = 1.959963984540054
"""The standard normal's 97.5 % point: two-sided 95 %."""

Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Accuracy:
    """``right`` of ``total`` samples."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """The share of samples answered right."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        n, p = self.total, self.share
        middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z / (1 + Z * Z / n) * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Answers:
    """What one program said to every sample: ``said`` and ``wanted`` int64 ``[n]``."""

    said: Tensor
    wanted: Tensor
    kinds: tuple[str, ...]

    def accuracy(self, kind: str | None = None) -> Accuracy:
        """Return how many samples (of a kind) were answered right."""
        right = self._of(self.said == self.wanted, kind)
        return Accuracy(int(right.sum()), len(right))

    def agreement(self, other: Answers, kind: str | None = None) -> Accuracy:
        """Return how many samples (of a kind) two programs gave the same answer to."""
        same = self._of(self.said == other.said, kind)
        return Accuracy(int(same.sum()), len(same))

    def _of(self, samples: Tensor, kind: str | None) -> Tensor:
        chosen = torch.tensor([kind is None or kind == name for name in self.kinds])
        return samples[chosen]


def answers(
    run: Run,
    output: str,
    batches: Iterable[Batch],
    advance: Callable[[int], None] = lambda done: None,
) -> Answers:
    """Run a program on every batch and read its answers off ``output``.

    ``advance`` is told how many samples are done.  Raises ``InputError`` where the output is no
    row of numbers per class, or an answer of the data is not among its classes.
    """
    said: list[Tensor] = []
    wanted: list[Tensor] = []
    kinds: list[str] = []
    for batch in batches:
        logits = _last_row(output, run(batch.inputs)[output])[: len(batch.answers)]
        _check_answers(batch, logits.shape[-1])
        said.append(logits.argmax(-1))
        wanted.append(batch.answers)
        kinds += batch.kinds
        advance(len(kinds))
    if not kinds:
        raise InputError("there are no samples to evaluate", expected="at least 1")
    return Answers(torch.cat(said), torch.cat(wanted), tuple(kinds))


def kinds_of(found: Sequence[Answers]) -> tuple[str, ...]:
    """Return the kinds of samples in the order they first come."""
    return tuple(dict.fromkeys(kind for one in found for kind in one.kinds))


def _last_row(name: str, value: Tensor) -> Tensor:
    """Return ``[B, classes]`` from that, or from the rows of a sequence ``[B, S, classes]``."""
    if value.dim() not in (2, 3) or not value.is_floating_point():
        raise InputError(
            f"the output {name!r} is {value.dtype} {list(value.shape)}",
            expected="[batch, classes] or [batch, rows, classes] of floating-point numbers",
            hint="eval reads answers off the first output of the program",
        )
    return value if value.dim() == 2 else value[:, -1]


def _check_answers(batch: Batch, classes: int) -> None:
    odd = batch.answers[(batch.answers < 0) | (batch.answers >= classes)].tolist()
    if odd:
        raise InputError(
            f"the answer {odd[0]} is not one of the program's",
            where=batch.where,
            expected=f"0 to {classes - 1}",
        )
