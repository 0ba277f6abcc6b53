"""Archive: the named records of a PT2 file, checked as a zip before any record is read.

torch stores records uncompressed below one root folder.  Reading nothing else (no compressed or
encrypted records, no doubled or path-like names, no members that overlap) means that no record can
be larger than the file, and that no two readers can see different records.  ``read`` checks a
record's CRC; whoever maps an ``extent`` calls ``check`` before computing on it.
Format: ``torch/csrc/export/pt2_archive_constants.h``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import IO

from tokopt.ir.archive_extents import extents
from tokopt.ir.errors import InputError

MODELS, WEIGHTS, CONSTANTS = "models/", "data/weights/", "data/constants/"
INPUTS, COMPILED = "data/sample_inputs/", "data/aotinductor/"
_CHUNK = 1 << 20
_AGAIN = "write the file again with torch.export.save"
_BROKEN = (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)


class Archive:
    """The records of one zip file by their names below the root folder; nothing is unpacked.

    Raises ``InputError`` if ``file`` is no zip, is damaged, or is a zip that torch does not write.
    """

    def __init__(self, file: IO[bytes]) -> None:
        try:
            self._zip = zipfile.ZipFile(file)
            members = [member for member in self._zip.infolist() if not member.is_dir()]
        except _BROKEN as error:
            raise InputError(
                f"the zip file is truncated or damaged ({error})", hint="copy or save it again"
            ) from error
        if min((member.header_offset for member in members), default=0):
            # Python searches from the end and finds the directory of a zip inside a cut-off one
            raise InputError("the zip file is truncated or damaged", hint="copy or save it again")
        roots = {_plain(member.filename).partition("/")[0] for member in members}
        skipped = len(roots.pop()) + 1 if len(roots) == 1 else 0
        self._records = {member.filename[skipped:]: member for member in members}
        if len(self._records) != len(members):
            raise InputError("the zip file has two members of one name", hint=_AGAIN)
        self._extents = extents(file, members, self._zip.start_dir)

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def below(self, folder: str) -> list[str]:
        """List the names, without the folder, of the records in ``folder`` (``"models/"``)."""
        return [name[len(folder) :] for name in self if name.startswith(folder)]

    def size(self, name: str) -> int:
        """Return the bytes of a record in number; ``InputError`` if there is none of that name."""
        return self._member(name).file_size

    def extent(self, name: str) -> tuple[int, int]:
        """Return where in the file a record's bytes are: ``(offset, size)``."""
        return self._extents[self._member(name).filename]

    def checksum(self, name: str) -> int:
        """Return the CRC-32 of a record, as the zip's directory states it."""
        return self._member(name).CRC

    def read(self, name: str) -> bytes:
        """Return the bytes of a record."""
        return b"".join(self.chunks(name))

    def check(self, name: str) -> None:
        """Read a record once, piece by piece, and raise ``InputError`` if its CRC is another."""
        for _ in self.chunks(name):
            pass

    def same(self, one: str, other: str) -> bool:
        """Whether two records hold the same bytes."""
        if self.size(one) != self.size(other) or self.checksum(one) != self.checksum(other):
            return False
        return all(a == b for a, b in zip(self.chunks(one), self.chunks(other), strict=True))

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a record in pieces; after the last one its CRC has been checked."""
        size = 0
        try:
            with self._zip.open(self._member(name)) as record:
                while chunk := record.read(_CHUNK):
                    size += len(chunk)
                    yield chunk
        except _BROKEN as error:
            raise InputError(
                f"record {name!r:.200} is damaged ({error})", hint="copy or save the file again"
            ) from error
        if size != self.size(name):
            raise InputError(f"record {name!r:.200} has {size} bytes instead of {self.size(name)}")

    def text(self, name: str, default: str) -> str:
        """Return a short record as text, or ``default`` where there is none."""
        return self.read(name)[:80].decode("utf-8", "replace").strip() if name in self else default

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._records:
            raise InputError(
                f"the archive has no record {name!r:.200}",
                expected="what torch.export.save of torch 2.8 or newer writes",
                hint=_AGAIN,
            )
        member = self._records[name]
        stored = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
        if not stored or member.compress_size != member.file_size:
            raise InputError(f"record {name!r:.200} is compressed or encrypted", hint=_AGAIN)
        return member


def _plain(path: str) -> str:
    """Return ``path`` if it is a relative path of plain names, as records have."""
    plain = path.isprintable() and "\\" not in path and ":" not in path
    if not plain or any(part in ("", ".", "..") for part in path.split("/")):
        raise InputError(f"the zip file has a member with the path {path!r:.200}", hint=_AGAIN)
    return path
