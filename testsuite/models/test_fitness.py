"""The trained model can judge selection: its answers need the digits' patches and only them.

Selection is done by hand on the eager model: after the tower, rows of the merged sequence are
dropped and the others keep their position ids.  About 30 s on one core.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from testsuite.models.build import ARCHIVE, trained
from testsuite.models.canvas import TOKENS
from testsuite.models.digits import CHANCE, KINDS, samples
from testsuite.models.model import last_logits

SIZE, KEEP = 500, 14  # 10 % of 144 patches

Choice = Callable[[torch.Tensor], torch.Tensor]  # ground truth [B, TOKENS] -> what to keep


def _first(order: torch.Tensor) -> torch.Tensor:
    kept = torch.zeros(order.shape, dtype=torch.bool)
    return kept.scatter(1, order.argsort(1)[:, :KEEP], True)


def _random(patches: torch.Tensor) -> torch.Tensor:
    return torch.rand(patches.shape, generator=torch.Generator().manual_seed(0))


CHOICES: dict[str, Choice] = {
    "ground truth": lambda patches: _first(_random(patches) - patches.float()),
    "random": lambda patches: _first(_random(patches)),
    "background": lambda patches: _first(_random(patches) + patches.float()),
}


@cache
@torch.no_grad()
def right(choice: str | None = None, blank: bool = False) -> torch.Tensor:
    """Which of the samples are answered right, bool [SIZE]."""
    asked, model = samples(1, SIZE), trained()
    answers = []
    for start in range(0, SIZE, 50):
        part = slice(start, start + 50)
        pixels = asked.pixel_values[part]
        keep = CHOICES[choice](asked.patches[part]) if choice else None
        logits = last_logits(model, pixels * 0 if blank else pixels, asked.input_ids[part], keep)
        answers.append(logits.argmax(-1))
    return torch.cat(answers) == asked.answers


def mean(hits: torch.Tensor) -> float:
    return hits.float().mean().item()


def test_the_digits_of_every_picture_fit_into_a_tenth_of_the_patches() -> None:
    assert samples(1, SIZE).patches.sum(1).max() <= KEEP <= TOKENS / 10


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_nine_of_ten_questions_of_every_kind_are_answered_right(kind: int) -> None:
    assert mean(right()[samples(1, SIZE).kinds == kind]) >= 0.9


def test_nineteen_of_twenty_questions_are_answered_right() -> None:
    assert mean(right()) >= 0.95


def test_the_patches_of_the_digits_alone_keep_99_percent_of_the_accuracy() -> None:
    assert mean(right("ground truth")) >= 0.99 * mean(right())


def test_random_patches_lose_15_points() -> None:
    assert mean(right("random")) <= mean(right()) - 0.15


def test_background_patches_know_little_of_the_digits() -> None:
    assert mean(right("background")) <= mean(right()) - 0.15


def test_a_blank_picture_is_answered_at_chance() -> None:
    assert mean(right(blank=True)) <= sum(CHANCE) / len(CHANCE) + 0.05


def test_the_archive_is_small() -> None:
    assert ARCHIVE.stat().st_size <= 12e6
