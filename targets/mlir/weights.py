"""``model.arguments.json``: what each argument of ``main`` is, and where a weight's bytes lie.

Bytes that ``program.pt2`` holds are referred to there; others go into ``model.mlir.data``.
Little-endian, row-major: ``numpy.memmap(file, dtype, "r", offset, shape)`` is the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.ir.torch_writing import writing
from tokopt.targets.parts import FIRST, of_part
from tokopt.targets.records import from_json, to_json
from tokopt.targets.stored_weights import StoredWeights

ARGUMENTS, DATA = "model.arguments.json", "model.mlir.data"


@dataclass(frozen=True)
class Argument:
    """An input, by ``name``; or a weight: ``file`` in the folder, ``offset`` in bytes."""

    dtype: str
    shape: tuple[int, ...] = ()
    name: str = ""
    file: str = ""
    offset: int = 0


@dataclass(frozen=True)
class Arguments:
    """The arguments of ``main`` in order, and the dialect it is in."""

    dialect: str
    arguments: tuple[Argument, ...]


def write_arguments(
    dialect: str,
    values: Sequence[Tensor | str],
    folder: Path,
    weights: StoredWeights | None,
    part: str = FIRST,
) -> tuple[str, ...]:
    """Write the list, and what weights are stored nowhere yet; return the files' names."""
    data, written, records = of_part(DATA, part), 0, list[Argument]()
    missing = list[Tensor]()
    for value in values:
        if isinstance(value, str):
            records.append(Argument("", name=value))
            continue
        kind, shape = str(value.dtype).removeprefix("torch."), tuple(map(int, value.shape))
        place = None if weights is None or not value.numel() else weights.place(value)
        if weights is not None and place is not None:
            records.append(Argument(kind, shape, file=weights.file, offset=place))
            continue
        records.append(Argument(kind, shape, file=data, offset=written))
        missing.append(value)
        written += value.numel() * value.itemsize
    names = [of_part(ARGUMENTS, part)]
    (folder / names[0]).write_text(to_json(Arguments(dialect, tuple(records))), encoding="utf-8")
    if missing:
        names.append(data)
        with writing(folder / data) as file:
            for value in missing:
                file.write(value.detach().cpu().contiguous().numpy().tobytes())
    return tuple(names)


def read_arguments(folder: Path, part: str = FIRST) -> tuple[str, list[Tensor | str]]:
    """Return the dialect, and per argument its weight (mapped, not read) or its input's name."""
    path = folder / of_part(ARGUMENTS, part)
    try:
        stored = from_json(Arguments, path.read_text(encoding="utf-8"), str(path))
        return stored.dialect, [_value(one, folder) for one in stored.arguments]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read the weights: {error}", where=str(path)) from error


def _value(one: Argument, folder: Path) -> Tensor | str:
    if one.name:
        return one.name
    if Path(one.file).name != one.file:
        raise InputError("a weight lies outside of the artifact", where=one.file)
    if 0 in one.shape:
        return torch.empty(one.shape, dtype=getattr(torch, one.dtype))
    kind = np.dtype(one.dtype)
    mapped = np.memmap(folder / one.file, kind, "c", one.offset, one.shape or (1,))
    return torch.from_numpy(mapped).reshape(one.shape)
