"""``signature.json``: the names that a lowered program's own format does not keep."""

from __future__ import annotations

from pathlib import Path

from tokopt.ir.errors import InputError
from tokopt.targets.records import from_json, to_json
from tokopt.targets.signature import Signature

SIGNATURE = "signature.json"


def write_signature(signature: Signature, folder: Path) -> str:
    """Write ``signature.json`` into ``folder``; return its name."""
    (folder / SIGNATURE).write_text(to_json(signature), encoding="utf-8")
    return SIGNATURE


def read_signature(folder: Path) -> Signature:
    """Read ``signature.json``.  ``InputError`` where it is missing or damaged."""
    path = folder / SIGNATURE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the signature: {error}", where=str(path)) from error
    return from_json(Signature, text, str(path))
