"""``signature.json``: the names that a lowered program's own format does not keep."""

from __future__ import annotations

from pathlib import Path

from tokopt.ir.errors import InputError
from tokopt.targets.parts import FIRST, of_part
from tokopt.targets.records import from_json, to_json
from tokopt.targets.signature import Signature

SIGNATURE = "signature.json"


def write_signature(signature: Signature, folder: Path, part: str = FIRST) -> str:
    """Write ``signature.json`` into ``folder``; return its name."""
    name = of_part(SIGNATURE, part)
    (folder / name).write_text(to_json(signature), encoding="utf-8")
    return name


def read_signature(folder: Path, part: str = FIRST) -> Signature:
    """Read ``signature.json``.  ``InputError`` where it is missing or damaged."""
    path = folder / of_part(SIGNATURE, part)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the signature: {error}", where=str(path)) from error
    return from_json(Signature, text, str(path))
