"""The trained models can judge selection: their answers need the digits' patches and only them.

Selection is done by hand on the eager model: after the tower, rows of the merged sequence are
dropped and the others keep their position ids.  About 30 s of processor time.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from testsuite.models.build import OFF, archive, difference, trained
from testsuite.models.canvas import TOKENS
from testsuite.models.digits import CHANCE, KINDS, samples
from testsuite.models.family import FAMILIES, last_logits

pytestmark = pytest.mark.slow
each = pytest.mark.parametrize("name", FAMILIES)

SIZE, KEEP = 250, 14  # 10 % of 144 patches

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


model = cache(trained)
asked = cache(lambda: samples(1, SIZE))


@cache
@torch.no_grad()
def seen(name: str) -> torch.Tensor:
    """The visual rows of the samples, [SIZE, TOKENS, WIDTH]."""
    parts = asked().pixel_values.split(50)
    return torch.cat([FAMILIES[name].visual_rows(model(name), part)[0] for part in parts])


@torch.no_grad()
def hits(name: str, rows: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
    """Which of the samples are answered right from these rows, bool [SIZE]."""
    family, answering, found = FAMILIES[name], model(name), []
    for part in (slice(start, start + 50) for start in range(0, SIZE, 50)):
        kept = None if keep is None else keep[part]
        found.append(last_logits(family, answering, rows[part], asked().input_ids[part], kept))
    return torch.cat(found).argmax(-1) == asked().answers


@cache
def right(name: str, choice: str | None = None) -> torch.Tensor:
    """Which of the samples are answered right, bool [SIZE]."""
    return hits(name, seen(name), CHOICES[choice](asked().patches) if choice else None)


def mean(answers: torch.Tensor) -> float:
    return answers.float().mean().item()


def test_the_digits_of_every_picture_fit_into_a_tenth_of_the_patches() -> None:
    assert asked().patches.sum(1).max() <= KEEP <= TOKENS / 10


@each
@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_nine_of_ten_questions_of_every_kind_are_answered_right(name: str, kind: int) -> None:
    assert mean(right(name)[asked().kinds == kind]) >= 0.9


@each
def test_nineteen_of_twenty_questions_are_answered_right(name: str) -> None:
    assert mean(right(name)) >= 0.95


@each
def test_the_patches_of_the_digits_alone_keep_99_percent_of_the_accuracy(name: str) -> None:
    assert mean(right(name, "ground truth")) >= 0.99 * mean(right(name))


@each
def test_random_patches_lose_15_points(name: str) -> None:
    assert mean(right(name, "random")) <= mean(right(name)) - 0.15


@each
def test_background_patches_know_little_of_the_digits(name: str) -> None:
    assert mean(right(name, "background")) <= mean(right(name)) - 0.15


@each
def test_a_blank_picture_is_answered_at_chance(name: str) -> None:
    with torch.no_grad():
        blank = torch.zeros_like(asked().pixel_values[:1])
        rows, _ = FAMILIES[name].visual_rows(model(name), blank)
    blind = mean(hits(name, rows.expand(SIZE, -1, -1)))
    assert blind <= sum(CHANCE) / len(CHANCE) + 0.05


@each
def test_the_archive_answers_like_the_eager_model_at_other_sizes(name: str) -> None:
    assert difference(name, torch.export.load(archive(name)), model(name)) <= OFF


@each
def test_the_archive_is_small(name: str) -> None:
    assert archive(name).stat().st_size <= 12e6
