"""Pictures of handwritten digits on clutter.

A picture has 12 x 12 patches of 12 px and one to four of scikit-learn's handwritten digits, each in
its own colour, 10 to 13 px high, slightly turned, about one patch each (its rim may reach into the
neighbours).  Background: tint, gradient, noise; grey strokes and blobs as distractors.  The digit
images are split once: those of ``held_out`` were never seen in training.  Everything is a pure
function of (seed, size, split).  All digits of a picture fit into 14 patches (10 % of 144).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Split = Literal["train", "held_out"]
Ints = NDArray[np.signedinteger[Any]]
Floats = NDArray[np.float32]

GRID, PATCH, MOST, CROWD = 12, 12, 4, 18
TOKENS, SIDE = GRID * GRID, GRID * PATCH

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
        touched: NDArray[np.bool_] = np.any(self.ink >= 1.0, axis=1)
        return touched


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

    reach, low, tilt = (2, 9, 0.25) if crowded else (1, 10, 0.15)  # wider variation in training
    turn = rng.uniform(-tilt, tilt, (size, slots, 1, 1))
    height = rng.uniform(low, 13, (size, slots, 1, 1))
    cells = np.stack([row, column])[..., None, None]  # no digit is cut by the rim of the canvas
    off = rng.uniform(np.where(cells > 0, -reach, 0), np.where(cells < GRID - 1, reach, 0))
    axis = np.arange(_TILE) - (_TILE - 1) / 2
    y, x = axis[:, None] - off[0], axis - off[1]
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
        at = item, r * PATCH + span[:, None], c * PATCH + span
        image[at] += alpha[:, slot, ..., None] * (paint - image[at])
        ink[item, slot, r + np.arange(3)[:, None], c + np.arange(3)] = part[:, slot]

    canvas = canvas[:, :, _PAD:-_PAD, _PAD:-_PAD] * 255
    noise = np.frombuffer(rng.bytes(canvas.size), np.uint8).reshape(canvas.shape)
    canvas += noise * np.float32(0.18)  # uniform, 23 either way
    canvas -= 23
    pixels = np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
    inside = ink[:, :, 1:-1, 1:-1].reshape(size, slots, TOKENS)
    cell = row * GRID + column
    return Scenes(pixels, count, labels[which], colour, cell, inside)
