"""sha256 of files, and the check that an artifact's files still are what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from tokopt.ir.errors import InputError


def sha256_of(path: Path) -> str:
    """Return the sha256 of the file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Compare the files of ``folder`` with their hashes.

    ``InputError`` names the first file that is missing, changed or outside the folder.
    """
    for name, expected in sorted(files.items()):
        place, path = PurePosixPath(name), folder / name
        if place.is_absolute() or ".." in place.parts:
            raise InputError(f"the manifest lists {name!r}, outside the folder", where=str(folder))
        try:
            actual = sha256_of(path)
        except OSError as error:
            raise InputError(
                f"a file of the artifact cannot be read: {error.strerror or error}",
                where=str(path),
                expected="every file that the manifest lists",
                hint="copy the artifact again, whole",
            ) from error
        if actual != expected:
            raise InputError(
                "a file of the artifact has changed since it was written",
                where=str(path),
                expected=f"sha256 {expected}, found {actual}",
                hint="copy the artifact again or compile it again",
            )
