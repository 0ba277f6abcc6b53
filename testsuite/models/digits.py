"""Pictures of handwritten digits on clutter, with questions: the data of the small trained model.

A picture has 12 x 12 patches of 12 px and one to four of scikit-learn's handwritten digits, each in
its own colour, 9 to 13 px high, slightly turned, about one patch each (its rim may reach into the
neighbours).  Background: tint, gradient, noise; grey strokes and blobs as distractors.  The digit
images are split once: those of ``held_out`` were never seen in training.  Everything is a pure
function of (seed, size, split).  All digits of a picture fit into 14 patches (10 % of 144).

A question is three words, its argument last; the answer is one word:
``what digit RED`` -> 7, ``what where RED`` -> a quadrant, ``what what count`` -> a number,
``what there RED`` -> yes or no, ``left RED BLUE`` -> the colour further left.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Split = Literal["train", "held_out"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

GRID, PATCH, MOST = 12, 12, 4
CROWD = 18
TOKENS, SIDE = GRID * GRID, GRID * PATCH
KINDS = ("digit", "where", "count", "there", "left")
CHANCE = (0.1, 0.25, 0.25, 0.5, 0.5)  # of the best constant answer, per kind

# words 0..9 are the digits, then six colours, four quadrants, the numbers one to four, and the rest
COLOUR, QUADRANT, NUMBER, YES, NO, WHAT = 10, 16, 20, 24, 25, 26
ASK = {kind: 27 + i for i, kind in enumerate(KINDS)}
BOS, IMAGE, WORDS = 32, 33, 34
TEXT = 3  # words of a question
PROMPT = 1 + TOKENS + TEXT

_RGB = np.array(
    [[1, 0.1, 0.1], [0.1, 0.9, 0.1], [0.15, 0.25, 1], [1, 1, 0.1], [1, 0.1, 1], [0.1, 1, 1]]
)
_TILE, _PAD = 18, 3  # a digit is drawn into 18 x 18 px: its cell and 3 px around it


@dataclass(frozen=True)
class Scenes:
    """Pictures and what is in them; of the MOST slots of a row the first ``count`` are real."""

    pixels: NDArray[np.uint8]  # [B, 3, SIDE, SIDE]
    count: Ints  # [B]
    digit: Ints  # [B, MOST]
    colour: Ints  # [B, 6] a permutation: slot i has colour[:, i], the rest are absent
    cell: Ints  # [B, MOST] the patch of the digit's centre
    ink: Floats  # [B, MOST, TOKENS] summed opacity of the digit in each patch

    @property
    def patches(self) -> NDArray[np.bool_]:
        """The ground truth [B, TOKENS]: patches that some digit touches by a pixel's worth."""
        return (self.ink >= 1.0).any(1)


@dataclass(frozen=True)
class Samples:
    """One question a picture, all prompts of one length: [BOS, IMAGE x TOKENS, three words]."""

    pixel_values: torch.Tensor  # [B, 3, SIDE, SIDE] float32
    input_ids: torch.Tensor  # [B, PROMPT] int64
    answers: torch.Tensor  # [B] int64, the word expected after the last position
    kinds: torch.Tensor  # [B] int64, index into KINDS
    patches: torch.Tensor  # [B, TOKENS] bool, ground truth


def pixel_values(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Bytes [B, 3, H, W] as the model takes them: float32, centred."""
    return torch.from_numpy(pixels).float().mul_(1 / 64).sub_(2)


@cache
def _bank(split: Split) -> tuple[Floats, Ints]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = order[:1500] if split == "train" else order[1500:]
    return images[chosen].reshape(-1, 8, 8).astype(np.float32) / 16.0, labels[chosen]


def _strokes(rng: np.random.Generator, size: int, image: Floats) -> None:
    """Paint eight grey capsules (dots, lines, blobs) onto every padded picture."""
    grid = np.arange(20, dtype=np.float32) - 9.5
    rows = np.arange(size)[:, None, None]
    for _ in range(8):
        drawn = rng.uniform([0, 0, 0.5], [np.pi, 6.5, 3], (size, 3)).astype(np.float32)
        angle, half, radius = drawn.T[..., None, None]
        dy, dx = np.sin(angle), np.cos(angle)
        along = grid[:, None] * dy + grid * dx
        beyond = along - np.clip(along, -half, half)
        away = np.sqrt(beyond**2 + (grid * dy - grid[:, None] * dx) ** 2)
        alpha = np.clip(radius - away, 0, 1)[..., None]
        paint = rng.uniform(0, 0.9, (size, 1, 1, 1)) + rng.uniform(-0.1, 0.1, (size, 1, 1, 3))
        top, left = rng.integers(0, image.shape[1] - 20, (2, size, 1, 1))
        place = rows, top + np.arange(20)[:, None], left + np.arange(20)
        image[place] += alpha * (paint.astype(np.float32) - image[place])


def _places(rng: np.random.Generator, size: int) -> tuple[Ints, Ints]:
    """Rows and columns [B, MOST]; columns are two apart: no overlap, "left of" is never close."""
    column = np.sort(rng.permuted(np.tile(np.arange(GRID - 3), (size, 1)), axis=1)[:, :MOST], 1)
    column = rng.permuted(column + np.arange(MOST), axis=1)
    return rng.integers(0, GRID, (size, MOST)), column


def _crowd(rng: np.random.Generator, size: int) -> tuple[Ints, Ints]:
    """Rows and columns [B, CROWD] on every second row and column."""
    spot = rng.permuted(np.tile(np.arange((GRID // 2) ** 2), (size, 1)), axis=1)[:, :CROWD]
    shift = rng.integers(0, 2, (2, size, 1))
    return 2 * (spot // (GRID // 2)) + shift[0], 2 * (spot % (GRID // 2)) + shift[1]


def scenes(
    seed: int, size: int, split: Split, count: Ints | None = None, crowded: bool = False
) -> Scenes:
    """Draw ``size`` pictures; ``count`` [B] fixes how many digits each has (else 1..4 evenly).

    ``crowded`` pictures, for training the tower only, have CROWD digits, colours repeat, and
    nothing can be asked about them.
    """
    rng, (bank, labels) = np.random.default_rng(seed), _bank(split)
    row, column = (_crowd if crowded else _places)(rng, size)
    slots = row.shape[1]
    if crowded:
        count, colour = np.full(size, slots), rng.integers(0, 6, (size, slots))
    else:
        count = rng.integers(1, MOST + 1, size) if count is None else count
        colour = rng.permuted(np.tile(np.arange(6), (size, 1)), axis=1)
    which = rng.integers(0, len(labels), (size, slots))

    full = SIDE + 2 * _PAD
    slope, tint = rng.uniform(-0.2, 0.2, (2, size, 3, 1, 1)).astype(np.float32)
    ramp = np.linspace(-0.5, 0.5, full, dtype=np.float32)
    level = rng.uniform(0.2, 0.6, (size, 1, 1, 1)).astype(np.float32) + 0.5 * tint
    canvas = (level + slope * ramp) + np.roll(slope, 1, 1) * ramp[:, None]
    image = canvas.transpose(0, 2, 3, 1)
    _strokes(rng, size, image)

    turn = rng.uniform(-0.25, 0.25, (size, slots, 1, 1))
    height = rng.uniform(9, 13, (size, slots, 1, 1))
    place = np.stack([row, column])[..., None, None]  # no digit is cut by the rim of the canvas
    off = rng.uniform(np.where(place > 0, -2, 0), np.where(place < GRID - 1, 2, 0))
    at = np.arange(_TILE) - (_TILE - 1) / 2
    y, x = at[:, None] - off[0], at - off[1]
    sin, cos = np.sin(turn) * 2 / height, np.cos(turn) * 2 / height
    where = torch.from_numpy(np.stack([x * cos + y * sin, y * cos - x * sin], -1)).float()
    glyph = torch.from_numpy(bank[which.ravel()])[:, None]
    drawn = torch.nn.functional.grid_sample(glyph, where.flatten(0, 1), align_corners=False)
    alpha = (1.2 * drawn).reshape(size, slots, _TILE, _TILE).numpy().clip(0, 1)
    alpha *= (np.arange(slots) < count[:, None])[..., None, None]

    ink = np.zeros((size, slots, GRID + 2, GRID + 2), np.float32)
    cuts = [0, _PAD, _PAD + PATCH]
    part = np.add.reduceat(np.add.reduceat(alpha, cuts, 2), cuts, 3)
    for slot in range(slots):
        paint = _RGB[colour[:, slot]] * rng.uniform(0.8, 1, (size, 1))
        paint = (paint + rng.uniform(-0.08, 0.08, (size, 3)))[:, None, None].astype(np.float32)
        r, c = row[:, slot, None, None], column[:, slot, None, None]
        span, item = np.arange(_TILE), np.arange(size)[:, None, None]
        place = item, r * PATCH + span[:, None], c * PATCH + span
        image[place] += alpha[:, slot, ..., None] * (paint - image[place])
        ink[item, slot, r + np.arange(3)[:, None], c + np.arange(3)] = part[:, slot]

    canvas = canvas[:, :, _PAD:-_PAD, _PAD:-_PAD] * 255
    noise = np.frombuffer(rng.bytes(canvas.size), np.uint8).reshape(canvas.shape)
    canvas += noise * np.float32(0.18)  # uniform, 23 either way
    canvas -= 23
    pixels = np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
    inside = ink[:, :, 1:-1, 1:-1].reshape(size, slots, TOKENS)
    cell = row * GRID + column
    return Scenes(pixels, count, labels[which], colour, cell, inside)


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
