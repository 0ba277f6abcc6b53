"""Questions about the pictures of canvas.py: the words, the answers, ready-made samples.

A question is three words, its argument last; the answer is one word:
``what digit RED`` -> 7, ``what where RED`` -> a quadrant, ``what what count`` -> a number,
``what there RED`` -> yes or no, ``left RED BLUE`` -> the colour further left.
Everything is a pure function of (seed, size, split).
"""

from dataclasses import dataclass

import numpy as np
import torch
from testsuite.models.canvas import GRID, MOST, TOKENS, Ints, Scenes, Split, pixel_values, scenes

KINDS = ("digit", "where", "count", "there", "left")
CHANCE = (0.1, 0.25, 0.25, 0.5, 0.5)  # of the best constant answer, per kind

# words 0..9 are the digits, then six colours, four quadrants, the numbers one to four, and the rest
COLOUR, QUADRANT, NUMBER, YES, NO, WHAT = 10, 16, 20, 24, 25, 26
ASK = {kind: 27 + i for i, kind in enumerate(KINDS)}
BOS, IMAGE, WORDS = 32, 33, 34
TEXT = 3  # words of a question
PROMPT = 1 + TOKENS + TEXT


@dataclass(frozen=True)
class Samples:
    """One question a picture, all prompts of one length: [BOS, IMAGE x TOKENS, three words]."""

    pixel_values: torch.Tensor  # [B, 3, SIDE, SIDE] float32
    input_ids: torch.Tensor  # [B, PROMPT] int64
    answers: torch.Tensor  # [B] int64, the word expected after the last position
    kinds: torch.Tensor  # [B] int64, index into KINDS
    patches: torch.Tensor  # [B, TOKENS] bool, ground truth

    def part(self, start: int, stop: int) -> "Samples":
        """Some of the samples."""
        return Samples(**{name: value[start:stop] for name, value in vars(self).items()})


def ask(rng: np.random.Generator, seen: Scenes, kinds: Ints) -> tuple[Ints, Ints]:
    """Questions [B, K, TEXT] of the given kinds [B, K] and answers [B, K] (-100: no such question).

    A question of kind "left" needs two digits.
    """
    size, per = kinds.shape
    item, count = np.arange(size)[:, None], seen.count[:, None]
    one = rng.integers(0, count, (size, per))
    two = (one + rng.integers(1, np.maximum(count, 2), (size, per))) % np.maximum(count, 2)
    absent = rng.integers(count, 6, (size, per))
    there = rng.integers(0, 2, (size, per)) == 1
    column, row = seen.cell % GRID, seen.cell // GRID
    quadrant = 2 * (row >= GRID // 2) + (column >= GRID // 2)
    name = COLOUR + seen.colour
    first, second = name[item, one], name[item, two]
    spoken = np.where(there, first, name[item, absent])
    lefter = np.where(column[item, one] < column[item, two], first, second)

    words = np.full((size, per, TEXT), WHAT)
    words[..., 1] = ASK["digit"] + kinds
    words[..., 2] = np.where(kinds == 3, spoken, first)
    is_count, is_left = kinds == 2, kinds == 4
    words[is_count, 1:] = [WHAT, ASK["count"]]
    words[is_left, 0] = ASK["left"]
    words[is_left, 1:] = np.stack([first, second], -1)[is_left]
    answers = np.choose(
        kinds,
        [
            seen.digit[item, one],
            QUADRANT + quadrant[item, one],
            np.broadcast_to(NUMBER + count - 1, kinds.shape),
            np.where(there, YES, NO),
            np.where(count >= 2, lefter, -100),
        ],
    )
    return words, answers


def samples(seed: int, size: int, split: Split = "held_out") -> Samples:
    """``size`` pictures with one question each, the kinds in turn."""
    rng = np.random.default_rng([seed, 1])
    kinds = np.arange(size) % len(KINDS)
    count = np.where(kinds == 4, rng.integers(2, MOST + 1, size), rng.integers(1, MOST + 1, size))
    seen = scenes(seed, size, split, count)
    words, answers = ask(rng, seen, kinds[:, None])
    ids = np.full((size, PROMPT), IMAGE)
    ids[:, 0], ids[:, -TEXT:] = BOS, words[:, 0]
    return Samples(
        pixel_values(seen.pixels),
        torch.from_numpy(ids),
        torch.from_numpy(answers[:, 0]),
        torch.from_numpy(kinds),
        torch.from_numpy(seen.patches),
    )
