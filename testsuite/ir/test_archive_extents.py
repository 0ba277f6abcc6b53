"""Zip files whose directory lies about where members are: none of them is mapped."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from testsuite.ir.load_archives import plain, saved, written

from tokopt.ir.archive import Archive
from tokopt.ir.errors import InputError
from tokopt.ir.load import load

DIRECTORY, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"
CRC, COMPRESSED, SIZE, OFFSET = 16, 20, 24, 42
"""Places in an entry of the directory."""


def zipped(**members: bytes) -> bytearray:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in members.items():
            file.writestr(f"a/{name}", data)
    return bytearray(content.getvalue())


def entry(content: bytearray, number: int) -> int:
    """Where the directory's entry of a member begins."""
    place = content.index(DIRECTORY)
    for _ in range(number):
        place = content.index(DIRECTORY, place + 4)
    return place


def put(content: bytearray, place: int, value: int) -> None:
    content[place : place + 4] = struct.pack("<I", value)


def grow(content: bytearray) -> None:
    """The first member reaches into the second, in its own header too."""
    size = struct.unpack_from("<I", content, entry(content, 0) + SIZE)[0] + 40
    for place in (entry(content, 0) + COMPRESSED, entry(content, 0) + SIZE, 18, 22):
        put(content, place, size)


def grow_last(content: bytearray) -> None:
    """The last member reaches into the directory."""
    put(content, entry(content, 2) + COMPRESSED, 60)
    put(content, entry(content, 2) + SIZE, 60)


def exceed(content: bytearray) -> None:
    """The last member reaches beyond the file."""
    put(content, entry(content, 2) + COMPRESSED, 0x7FFFFFFF)
    put(content, entry(content, 2) + SIZE, 0x7FFFFFFF)


def inside(content: bytearray) -> None:
    """The second member lies inside the first, with a header of its own there."""
    second = content.index(LOCAL, 4)
    header = content[second : content.index(LOCAL, second + 4)]
    start = content.index(b"0" * 500)
    content[start : start + len(header)] = header
    put(content, entry(content, 1) + OFFSET, start)


def beyond(content: bytearray) -> None:
    """The second member begins behind the end of the file."""
    put(content, entry(content, 1) + OFFSET, 0x7FFFFFFF)


def twice(content: bytearray) -> None:
    """Two members share one header: all records are one record's bytes."""
    put(content, entry(content, 2) + OFFSET, content.index(LOCAL, 4))


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (grow, "'a/one' overlaps another one"),
        (grow_last, "'a/three' overlaps another one or the directory"),
        (exceed, "'a/three' overlaps another one or the directory"),
        (inside, "'a/one' overlaps another one"),
        (beyond, "truncated or damaged (at member 'a/two')"),
        (twice, "truncated or damaged (at member 'a/three')"),
    ],
)
def test_a_directory_that_lies_about_places_is_refused(
    lie: Callable[[bytearray], None], message: str
) -> None:
    content = zipped(one=b"0" * 500, two=b"2" * 50, three=b"3" * 50)
    assert Archive(io.BytesIO(bytes(content))).read("two") == b"2" * 50
    lie(content)
    with pytest.raises(InputError) as refused:
        Archive(io.BytesIO(bytes(content)))
    assert message in str(refused.value)


def test_an_extent_is_where_a_records_bytes_are() -> None:
    content = bytes(zipped(one=b"1" * 500, two=b"", three=b"3" * 50))
    archive = Archive(io.BytesIO(content))
    for name, data in (("one", b"1" * 500), ("two", b""), ("three", b"3" * 50)):
        start, size = archive.extent(name)
        assert content[start : start + size] == data


def test_a_record_of_the_size_of_another_is_not_the_same() -> None:
    archive = Archive(io.BytesIO(bytes(zipped(a=b"1" * 50, b=b"2" * 50, c=b"1" * 50, d=b"1" * 51))))
    assert archive.same("a", "c") and not archive.same("a", "b") and not archive.same("a", "d")


def test_a_forged_checksum_does_not_make_two_weights_one(tmp_path: Path) -> None:
    content = bytearray(zipped(a=b"1" * 50, b=b"2" * 50))
    crc = content[entry(content, 0) + CRC : entry(content, 0) + CRC + 4]
    content[entry(content, 1) + CRC : entry(content, 1) + CRC + 4] = crc
    archive = Archive(io.BytesIO(bytes(content)))
    assert archive.checksum("a") == archive.checksum("b")
    with pytest.raises(InputError, match="record 'b' is damaged"):
        archive.same("a", "b")


def test_a_program_behind_four_gigabytes_of_other_bytes_loads(tmp_path: Path) -> None:
    """The directory of such a file is in the zip64 form."""
    path = written(tmp_path, saved(plain()))
    content = path.read_bytes()
    large = tmp_path / "large.pt2"
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(large, "w") as new:
        assert new.fp is not None
        hole = zipfile.ZipInfo("archive/hole")
        hole.CRC, hole.file_size, hole.compress_size, hole.header_offset = 0, 5 << 30, 5 << 30, 0
        new.fp.write(hole.FileHeader(zip64=True))
        new.fp.seek(5 << 30, 1)
        new.filelist.append(hole)
        new.start_dir = new.fp.tell()
        for name in old.namelist():
            new.writestr(name, old.read(name))
    if large.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system has no sparse files")
    ours, theirs = load(large, check=False).main, load(path).main
    assert ours.state_dict["layer.weight"].equal(theirs.state_dict["layer.weight"])
