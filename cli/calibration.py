"""Calibration: the samples that plans are judged on, from files laid out as those of ``eval``."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.eval_batch import batch_size
from tokopt.cli.eval_data import find_data
from tokopt.cli.inputs import check_merges
from tokopt.ir.placeholders import Placeholders
from tokopt.targets.signature import signature_of

BATCH, MOST = 32, 256
"""Samples at once, and samples in all: more cost time and tell little more."""


def calibration(
    exported: ExportedProgram, place: str | Path, placeholders: tuple[Placeholders, ...]
) -> list[dict[str, Tensor]]:
    """Return the first ``MOST`` samples of a safetensors file or folder, in batches.

    Answers and kinds are left aside.  Raises ``InputError`` before any search for files that
    are missing, empty or damaged, do not fit the program, hold NaN, or whose items have another
    number of image placeholders than the program wants.
    """
    signature = signature_of(exported)
    size = batch_size(signature, BATCH)
    found: list[dict[str, Tensor]] = []
    left = MOST
    for file in find_data(place, signature, labelled=False):
        for batch in file.batches(signature, size, left):
            check_merges(batch.inputs, placeholders, batch.where)
            found.append(dict(batch.inputs))
        left = max(0, left - file.count)
    return found
