"""Eval data: labelled samples in safetensors files, read batch by batch.

A file, or a folder of ``*.safetensors`` read in the order of their names.  Each file holds

    <input>   every input of the program by its name, the samples along dim 0 in all of them
    answer    int64 [n]: the expected argmax of the last row of the program's first output
    kind      int64 [n], optional: an index into the names in the file's metadata,
              {"kinds": "digit,where,count"}; without names, kinds are called by their numbers

Samples whose inputs differ in size (prompts of other lengths) go into separate files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tokopt.cli.eval_batch import Batch, batch_range, padded
from tokopt.cli.inputs import fitting_inputs
from tokopt.ir.errors import InputError
from tokopt.targets.signature import Signature

ANSWER, KIND, KINDS = "answer", "kind", "kinds"
ANSWERED = "answered"
"""Of samples to calibrate on: how many tokens at the prompt's end are an answer, int64 [n]."""
WHOLE = "all"
"""The kind of samples whose file tells none."""


@dataclass(frozen=True)
class DataFile:
    """One file, its header checked: names, counts; ``kinds`` names the kinds it numbers."""

    path: Path
    count: int
    kinds: tuple[str, ...] | None
    has_kinds: bool
    labelled: bool = True
    answered: bool = False

    def batches(self, signature: Signature, size: int, limit: int) -> Iterator[Batch]:
        """Yield up to ``limit`` samples, ``size`` at a time, that fit the program."""
        least, _ = batch_range(signature)
        for start in range(0, min(self.count, limit), size):
            part = slice(start, min(start + size, self.count, limit))
            with _opened(self.path) as file:
                inputs = {s.name: file.get_slice(s.name)[part] for s in signature.inputs}
                answers = file.get_slice(ANSWER)[part] if self.labelled else None
                lengths = file.get_slice(ANSWERED)[part] if self.answered else None
                numbers = file.get_slice(KIND)[part].tolist() if self.has_kinds else None
            try:
                inputs = dict(fitting_inputs(padded(inputs, least), signature))
                if lengths is not None:
                    inputs |= padded({ANSWERED: lengths}, least)
            except InputError as error:
                error.where = f"{self.path}: {error.where}" if error.where else str(self.path)
                raise
            count = part.stop - part.start
            answers = torch.zeros(count, dtype=torch.int64) if answers is None else answers
            kinds = (WHOLE,) * count if numbers is None else self._named(numbers)
            yield Batch(inputs, answers, kinds, str(self.path))

    def _named(self, numbers: list[int]) -> tuple[str, ...]:
        if self.kinds is None:
            return tuple(map(str, numbers))
        wrong = next((n for n in numbers if not 0 <= n < len(self.kinds)), None)
        if wrong is not None:
            raise InputError(
                f"a sample is of kind {wrong}",
                where=str(self.path),
                expected=f"0 to {len(self.kinds) - 1}: {', '.join(self.kinds)}",
            )
        return tuple(self.kinds[n] for n in numbers)


def find_data(place: str | Path, signature: Signature, labelled: bool = True) -> list[DataFile]:
    """Return the data files at a place, their headers checked against the program's inputs.

    Where samples need not be ``labelled`` files may do without answers, and none are read.

    Raises ``InputError`` for a place without files, a file that is damaged, lacks a tensor or
    has one too many, or whose tensors disagree on the number of samples.
    """
    place = Path(place)
    paths = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    if not paths:
        raise InputError("there is no data in this folder", where=str(place), expected=_layout())
    names = [spec.name for spec in signature.inputs]
    return [_data_file(path, names, labelled) for path in paths]


def _data_file(path: Path, names: list[str], labelled: bool) -> DataFile:
    with _opened(path) as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}
        dtypes = {key: file.get_slice(key).get_dtype() for key in shapes}
        text = (file.metadata() or {}).get(KINDS)
    needed = [*names, ANSWER] if labelled else names
    missing = [name for name in needed if name not in shapes]
    extra = (ANSWER, KIND) if labelled else (ANSWER, KIND, ANSWERED)
    unknown = [name for name in shapes if name not in (*names, *extra)]
    if missing or unknown:
        what = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is unknown"
        raise InputError(what, where=str(path), expected=_layout(names))
    for name in set(extra) & set(shapes) - set(names):
        if len(shapes[name]) != 1 or dtypes[name] != "I64":
            what = f"{name!r} is {dtypes[name]} {shapes[name]}"
            raise InputError(what, where=str(path), expected="int64 [n]")
    counts = {name: shape[0] if shape else None for name, shape in shapes.items()}
    first = needed[-1]
    count = counts[first]
    odd = next((name for name, n in counts.items() if n != count), None)
    if odd is not None or not count:
        what = f"{odd!r} has {counts[odd]} samples and {first!r} {count}" if odd else "no samples"
        raise InputError(what, where=str(path), expected="the samples along dim 0 of every tensor")
    kinds = None if text is None else tuple(part.strip() for part in text.split(","))
    answered = ANSWERED in shapes and ANSWERED not in names
    return DataFile(path, count, kinds, KIND in shapes and KIND not in names, labelled, answered)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; what is wrong with it is an ``InputError``."""
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"the data cannot be read: {error}", where=str(path), expected=_layout()
        ) from error


def _layout(names: list[str] | None = None) -> str:
    inputs = ", ".join(names) if names else "one tensor per input"
    return f"safetensors with {inputs}, {ANSWER!r} (int64 [n]) and perhaps {KIND!r} (int64 [n])"
