"""Example inputs of an archive: plain tensors and numbers, or the file is refused.

They are stored by ``torch.save``, a pickle.  torch's loader falls back to running it; here only the
restricted unpickler (``weights_only=True``) sees it, and what it returns is checked again because
strings and keys among example inputs end up in source code that ``ExportedProgram.module`` makes.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from tokopt.ir.archive import Archive
from tokopt.ir.archive_layout import identifier, plain_text
from tokopt.ir.errors import InputError

_PLAIN = (torch.Tensor, torch.nn.Parameter, int, float, bool, complex, type(None), torch.dtype)


def read_inputs(archive: Archive, record: str) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """``(args, kwargs)`` as they were given to ``torch.export.export``; ``None`` without record.

    Raises ``InputError`` if the record needs more than tensors, numbers, strings and containers.
    """
    if record not in archive or not archive.size(record):
        return None
    content = archive.read(record)
    try:
        Archive(io.BytesIO(content))  # torch would inflate compressed members
        args, kwargs = torch.load(io.BytesIO(content), weights_only=True)
        check_inputs(args, kwargs)
    except Exception as error:  # the restricted unpickler raises many kinds
        raise InputError(
            f"the example inputs are a pickle of more than plain tensors ({_globals(content)})",
            where=record,
            hint="set program.example_inputs = None before torch.export.save",
        ) from error
    return tuple(args), kwargs


def check_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise ``InputError`` unless all arguments are plain (nested) tensors and numbers."""
    for name in kwargs:
        identifier(name)
    for value in (*args, *kwargs.values()):
        _check(value)


def _check(value: object) -> None:
    if type(value) in (tuple, list):
        for item in value:  # type: ignore[attr-defined]
            _check(item)
    elif type(value) in (dict, OrderedDict):
        for key, item in value.items():  # type: ignore[attr-defined]
            _check(key)
            _check(item)
    elif isinstance(value, str):
        plain_text(value)
    elif type(value) not in _PLAIN:
        raise InputError(f"an example input is a {type(value).__name__}")


def _globals(content: bytes) -> str:
    """Names of what the pickle would import, for the message."""
    try:
        names = get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    except Exception:  # the record is damaged; the message says the rest
        return "not readable"
    return ", ".join(sorted(names)[:3])[:200] or "unusual values"
