"""A file for torch's archive writer, which ends the process when writing to a disk fails.

The writer (C++) finishes the archive in its destructor; a write error there is
``std::terminate``.  So the file given to it accepts everything, remembers the first error,
and raises it once the writer is gone.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast


class _Forgiving(io.RawIOBase):
    """Passes bytes on to ``file`` until one write fails; then only counts them."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Do nothing: the writer only rewinds for a reader, and there is none."""
        return 0

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        if self.error is None:
            try:
                self.file.write(view)
            except OSError as error:
                self.error = error
        return len(view)


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for one torch archive; raise the ``OSError`` of the first failed write."""
    with path.open("wb") as file:
        forgiving = _Forgiving(file)
        yield cast(IO[bytes], forgiving)
        if forgiving.error is not None:
            raise forgiving.error
