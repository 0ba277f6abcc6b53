"""Write an artifact folder so that it is there whole or not at all.

Everything is written into a hidden folder beside the final place, then renamed::

    with building(folder) as draft:
        target.lower(exported, draft)
        save_program(program, draft)
        ...                                 # gates may run on the draft
        seal(draft, Manifest(...))

Failure, Ctrl-C and a full disk leave what was there before; what a killed process left, the next
one removes (``drafts.py``).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tokopt.ir.errors import InputError, InternalError
from tokopt.targets.drafts import beside, drafting
from tokopt.targets.hashing import sha256_of
from tokopt.targets.manifest import MANIFEST, Manifest, read_manifest, write_manifest

PLAN, LOG = "plan.toml", "log.txt"
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``folder`` when the block ends well.

    Replaces an artifact that is there.  Raises ``InputError`` where something else is there,
    where the folder cannot be written, or where the disk is full.
    """
    folder = Path(os.path.realpath(folder))
    _check_place(folder)
    with ExitStack() as stack:
        try:
            draft = stack.enter_context(drafting(folder))
        except OSError as error:
            raise InputError(f"cannot write here: {error.strerror}", where=str(folder)) from error
        try:
            yield draft
            if not (draft / MANIFEST).is_file():
                raise InternalError("an artifact was to be published without a manifest")
            _publish(draft, folder)
        except BaseException as error:
            if _is_full(error):
                raise InputError(
                    "the disk is full",
                    where=str(folder.parent),
                    hint="free some space or choose another folder; nothing was left behind",
                ) from error
            raise


def seal(draft: Path, manifest: Manifest, logs: Sequence[str] = (LOG,)) -> Manifest:
    """Hash every file of ``draft``, write ``manifest.json`` and return the completed manifest.

    ``logs`` are files whose text differs from run to run; their hashes go under ``run``.
    """
    paths = sorted(path for path in draft.rglob("*") if path.is_file())
    hashes = {path.relative_to(draft).as_posix(): sha256_of(path) for path in paths}
    hashes.pop(MANIFEST, None)
    sealed = replace(
        manifest,
        files={name: value for name, value in hashes.items() if name not in logs},
        run=replace(manifest.run, files={n: v for n, v in hashes.items() if n in logs}),
    )
    write_manifest(sealed, draft)
    return sealed


def _check_place(folder: Path) -> None:
    """Refuse a place that holds anything but an artifact, or an artifact with foreign files."""
    if not folder.parent.is_dir():
        raise InputError("the folder to write into does not exist", where=str(folder.parent))
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise InputError("there is a file where the artifact should go", where=str(folder))
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        raise InputError(
            "there is a folder that is not a tokopt artifact",
            where=str(folder),
            expected="no folder, an empty one, or an artifact to replace",
            hint="choose another folder or remove this one yourself",
        ) from error
    ours = {MANIFEST, *manifest.files, *manifest.run.files}
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    if there - ours:
        raise InputError(
            "the artifact to replace holds files that tokopt did not write: "
            + ", ".join(sorted(there - ours)[:5]),
            where=str(folder),
            hint="move them away or choose another folder",
        )


def _publish(draft: Path, folder: Path) -> None:
    """Rename ``draft`` to ``folder``; an artifact there steps aside first and is removed last."""
    if not folder.exists():
        draft.rename(folder)
        return
    aside = beside(folder, "replaced")
    folder.rename(aside)
    try:
        draft.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk is what ``error`` was raised for."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False
