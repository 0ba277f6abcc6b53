"""Write tensors: named tensors as a safetensors file, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tokopt.ir.errors import InputError


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors: whole or not at all.

    Raises ``InputError`` where the place cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, beside)
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"the outputs cannot be written: {error}", where=str(path)) from error
    finally:
        beside.unlink(missing_ok=True)
