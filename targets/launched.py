"""Launched: what an AOTInductor package calls: library operators, and kernels Inductor made.

Read from the C++ that Inductor leaves in the package beside the machine code; nothing is run.  A
kernel's name tells the operators fused in it.  Attention shows as a library operator
(``_scaled_dot_product…``); where it, or a method's scores, are written out, as products (``bmm``).
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokopt.ir.errors import InputError

CALLED = re.compile(r"\baoti_torch_(?:cpu|cuda)_(\w+)\(")
MADE = re.compile(r"\b(?:cpp|triton_[a-z]+)_fused_(\w+)\b")
SOURCE = ".wrapper.cpp"


@dataclass(frozen=True)
class Launched:
    """``library``: places that call an operator, by it; ``kernels``: those made, by their name."""

    library: Mapping[str, int]
    kernels: tuple[str, ...]


def launched(package: Path) -> Launched:
    """Return what a package calls.  ``InputError`` for a file that holds no source of Inductor's.

    Calls that launch work of their own are listed, not those that allocate or ask.
    """
    try:
        with zipfile.ZipFile(package) as archive:
            names = [name for name in archive.namelist() if name.endswith(SOURCE)]
            sources = [archive.read(name).decode("utf-8", "replace") for name in names]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read the package: {error}", where=str(package)) from error
    if not sources:
        raise InputError("the package does not hold its source", where=str(package))
    text = "\n".join(sources)
    library = Counter(CALLED.findall(text))
    return Launched(dict(sorted(library.items())), tuple(sorted(set(MADE.findall(text)))))
