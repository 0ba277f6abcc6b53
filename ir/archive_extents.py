"""Extents: where the bytes of each member of a zip file lie, so that they can be mapped.

Sound because every member's own header is read and held against the directory, and because no
member reaches into the next one or into the directory: a mapped record is what a reader would read.
Format: APPNOTE.TXT 6.3.10 of PKWARE, sections 4.3.6 and 4.3.7.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from typing import IO

from tokopt.ir.errors import InputError

_HEADER = struct.Struct("<4s22xHH")
_MAGIC = b"PK\x03\x04"
_UTF8 = 0x800


def extents(
    file: IO[bytes], members: Iterable[zipfile.ZipInfo], end: int
) -> dict[str, tuple[int, int]]:
    """Return ``(offset, size)`` in bytes by member name; ``end`` is where the directory begins.

    Raises ``InputError`` for members that overlap, and for headers the directory contradicts.
    """
    found = {}
    for member in sorted(members, key=lambda member: member.header_offset, reverse=True):
        start = _data_start(file, member)
        if start + member.compress_size > end:
            raise InputError(
                f"member {member.filename!r:.200} overlaps another one or the directory",
                hint="write the file again with torch.export.save",
            )
        found[member.filename] = start, member.compress_size
        end = member.header_offset
    return found


def _data_start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    file.seek(member.header_offset)
    header = file.read(_HEADER.size)
    if len(header) == _HEADER.size:
        magic, length, extra = _HEADER.unpack(header)
        name = file.read(length)
        code = "utf-8" if member.flag_bits & _UTF8 else "cp437"
        if magic == _MAGIC and name == member.orig_filename.encode(code, "replace"):
            return member.header_offset + _HEADER.size + int(length) + int(extra)
    raise InputError(
        f"the zip file is truncated or damaged (at member {member.filename!r:.200})",
        hint="copy or save it again",
    )
