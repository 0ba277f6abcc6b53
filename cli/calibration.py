"""Calibration: the samples that plans are judged on.

From files laid out as those of ``eval``, or from pictures and prompts (``prompted.py``).
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.eval_batch import batch_size
from tokopt.cli.eval_data import find_data
from tokopt.cli.inputs import check_merges
from tokopt.cli.processor import processor_named
from tokopt.cli.prompted import is_prompted, prompted
from tokopt.ir.errors import InputError
from tokopt.ir.placeholders import Placeholders
from tokopt.targets.signature import signature_of

BATCH, MOST = 32, 256
"""Samples at once, and samples in all: more cost time and tell little more."""


def calibration(
    exported: ExportedProgram,
    place: str | Path,
    placeholders: tuple[Placeholders, ...],
    processor: str | None = None,
) -> list[dict[str, Tensor]]:
    """Return the first ``MOST`` samples of a safetensors file or folder, in batches.

    Or of a folder of pictures and prompts, by the ``processor`` of that folder or name.  Answers
    and kinds are left aside.  Raises ``InputError`` before any search for files that are missing,
    empty or damaged, do not fit the program, hold NaN, or whose items have another number of image
    placeholders than the program wants.
    """
    signature = signature_of(exported)
    found: list[dict[str, Tensor]] = []
    if is_prompted(place):
        if processor is None:
            raise InputError(
                "pictures and prompts are made inputs by a processor",
                where=str(place),
                expected="--processor NAME, or safetensors",
                hint="the folder or name of the model that was exported",
            )
        made = processor_named(processor)
        for inputs, where in prompted(place, made, signature, BATCH, MOST):
            check_merges(inputs, placeholders, where)
            found.append(inputs)
        return found
    if processor is not None:
        raise InputError(
            "--processor is for a folder of pictures and prompts",
            where=str(place),
            expected="a folder with a *.jsonl file in it",
        )
    size = batch_size(signature, BATCH)
    left = MOST
    for file in find_data(place, signature, labelled=False):
        for batch in file.batches(signature, size, left):
            check_merges(batch.inputs, placeholders, batch.where)
            found.append(dict(batch.inputs))
        left = max(0, left - file.count)
    return found
