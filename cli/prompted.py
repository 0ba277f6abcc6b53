"""Prompted: calibration samples from pictures and prompts, made inputs by a Hugging Face processor.

A folder with one or more ``*.jsonl`` files, a sample on each line::

    {"image": "a.png", "prompt": "what is this?"}

A line may have an ``answer`` as well, which the prompt is made to end in: plans are then judged at
each of its tokens too.  ``image`` may be a list, and a picture named by several lines; paths begin
at the folder.  Each sample is a prompt without padding; neighbours of equal sizes run together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokopt.cli.eval_batch import batch_range, batch_size, padded
from tokopt.cli.eval_data import ANSWERED
from tokopt.cli.inputs import fitting_inputs
from tokopt.cli.processor import Processor, prompt_inputs
from tokopt.ir.errors import InputError
from tokopt.targets.signature import Signature

FORM = '{"image": "a.png", "prompt": "what is this?"}'


def is_prompted(place: str | Path) -> bool:
    """Return whether a place is a folder of pictures and prompts."""
    return Path(place).is_dir() and any(Path(place).glob("*.jsonl"))


def prompted(
    folder: str | Path, processor: Processor, signature: Signature, size: int, most: int
) -> list[tuple[dict[str, Tensor], str]]:
    """Return the first ``most`` samples in batches of up to ``size``, each with where it is from.

    Raises ``InputError`` naming the file and line of a sample that is damaged or does not fit.
    """
    try:
        least, size = batch_range(signature)[0], batch_size(signature, size)
    except InputError:  # pictures packed in one row of patches: a prompt is a run
        least, size = 1, 1
    made: list[tuple[dict[str, Tensor], str]] = []
    for (line, where), _ in zip(_lines(Path(folder)), range(most), strict=False):
        try:
            names = [line["image"]] if isinstance(line["image"], str) else line["image"]
            images = [Path(folder) / str(name) for name in names]
            inputs = prompt_inputs(images, line.get("prompt"), processor, signature)
            fitting_inputs(inputs if size == 1 else padded(inputs, least), signature)
            if "answer" in line:
                inputs, lengths = answered(images, line, processor, signature)
                inputs[ANSWERED] = lengths
        except InputError as error:
            error.where = f"{where}: {error.where}" if error.where else where
            raise
        made.append((inputs, where))
    if not made:
        raise InputError("there are no samples", where=str(folder), expected=FORM)
    if size == 1:
        return made
    found: list[tuple[dict[str, Tensor], str]] = []
    for _, same in groupby(
        made, lambda one: [(name, value.shape[1:]) for name, value in one[0].items()]
    ):
        group = list(same)
        for start in range(0, len(group), size):
            part = group[start : start + size]
            whole = {k: torch.cat([inputs[k] for inputs, _ in part]) for k in part[0][0]}
            found.append((padded(whole, least), part[0][1]))
    return found


def answered(
    images: list[Path], line: dict[str, Any], processor: Processor, signature: Signature
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the inputs of a prompt that ends in its answer, and how many tokens that is."""
    prompt, answer = line.get("prompt", ""), line["answer"]
    alone = prompt_inputs(images, prompt, processor, signature)
    whole = prompt_inputs(images, prompt, processor, signature, answer)
    longer = next(
        (n for n in alone if alone[n].shape != whole[n].shape and _is_ids(whole[n])), None
    )
    if longer is None:
        raise InputError("the answer makes the prompt no longer", expected="an answer of some text")
    ids, before = whole[longer][0], alone[longer][0]
    same = int((ids[: len(before)] == before).long().cumprod(0).sum())  # a token may span both
    return whole, torch.tensor([len(ids) - same])


def _is_ids(value: Tensor) -> bool:
    return value.dtype == torch.int64 and value.dim() == 2


def _lines(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for path in sorted(folder.glob("*.jsonl")):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the prompts cannot be read: {error}", where=str(path)) from error
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            where = f"{path}, line {number}"
            try:
                line = json.loads(text)
            except json.JSONDecodeError as error:
                raise InputError(f"not JSON: {error}", where=where, expected=FORM) from error
            if not isinstance(line, dict) or not isinstance(line.get("image"), str | list):
                raise InputError("there is no image", where=where, expected=FORM)
            for name in ("prompt", "answer"):
                if not isinstance(line.get(name, ""), str):
                    raise InputError(f"the {name} is no text", where=where, expected=FORM)
            yield line, where
