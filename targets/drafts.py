"""Drafts: hidden folders beside the final place, locked by their writers as long as these live.

The system lets go of a lock when its process ends, however it ends.  So a draft whose lock is free
is what a killed process left, and the next writer to the same place removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def drafting(folder: Path) -> Iterator[Path]:
    """Yield a new, empty folder beside ``folder``; whoever renames it away keeps it.

    Raises ``OSError`` where no folder can be made.
    """
    _remove_abandoned(folder)
    fresh, draft = beside(folder, "fresh"), beside(folder, "partial")
    fresh.mkdir()
    lock = os.open(fresh, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: then nobody removes it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fresh.rename(draft)  # only now can others take it for a draft
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(lock)


def beside(folder: Path, why: str) -> Path:
    """Return a hidden place beside ``folder`` that nothing has yet."""
    return folder.with_name(f".{folder.name}.{why}-{secrets.token_hex(4)}")


def _remove_abandoned(folder: Path) -> None:
    for draft in folder.parent.glob(f"{glob.escape(f'.{folder.name}.partial-')}*"):
        with contextlib.suppress(OSError):  # its writer lives, or it is not ours to remove
            lock = os.open(draft, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(draft, ignore_errors=True)
            finally:
                os.close(lock)
