"""Files that are no archives of exported programs, or damaged ones: one clear message each."""

from __future__ import annotations

import io
import json
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from testsuite.ir.load_archives import Json, Plain, dynamic, plain, rewritten, saved, written

from tokopt.ir.errors import InputError
from tokopt.ir.load import load


@pytest.fixture(scope="module")
def content() -> bytes:
    return saved(plain())


def refused(path: Path, message: str) -> InputError:
    """Load, and see the message, the file's name and something to do."""
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load(path)
    error = caught.value
    assert error.exit_code == 2 and str(path) in str(error)
    assert error.hint or error.expected
    return error


def torch_saved(value: object, **options: Any) -> bytes:
    content = io.BytesIO()
    torch.save(value, content, **options)
    return content.getvalue()


def zipped(members: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, text in members.items():
            file.writestr(name, text)
    return content.getvalue()


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    refused(tmp_path / "no.pt2", "there is no such file")
    refused(tmp_path / "no" / "no.pt2", "there is no such file")
    refused(Path("a\0b"), "the file cannot be read")


def test_a_folder_is_said_to_be_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "the path is a folder")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "the file is no zip file"),
        (b"P", "the file is no zip file"),
        (b"PK\x03\x04", "truncated or damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{}" + b" " * 8, "safetensors"),
        (b"\x08\x0a\x12\x07pytorch", "ONNX model"),
        (b"GGUF\x03\x00", "GGUF"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
    ],
)
def test_other_kinds_of_files_are_recognised(tmp_path: Path, head: bytes, message: str) -> None:
    refused(written(tmp_path, head), message)


def test_what_torch_save_writes_is_recognised_without_loading_it(tmp_path: Path) -> None:
    model = Plain()
    refused(written(tmp_path, torch_saved(model.state_dict())), "a pickled state_dict")
    error = refused(written(tmp_path, torch_saved(model)), "a pickle of Python objects")
    assert "testsuite.ir.load_archives.Plain" in error.what
    old = torch_saved(model, _use_new_zipfile_serialization=False)
    refused(written(tmp_path, old), "a pickle (torch.save of an old torch)")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    refused(path, "a TorchScript archive")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "a zip file that is no PT2 archive"),
        ({"readme.txt": "hello"}, "a zip file that is no PT2 archive"),
        ({"a/b": "1", "c/d": "2"}, "a zip file that is no PT2 archive"),
        ({"serialized_exported_program.json": "{}", "version": "8.0"}, "before 2.8"),
        ({"a/archive_format": "pt2", "a/archive_version": "0"}, "without a program"),
    ],
)
def test_other_zip_files_are_recognised(
    tmp_path: Path, members: dict[str, str], message: str
) -> None:
    refused(written(tmp_path, zipped(members)), message)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, content: bytes) -> None:
    for end in range(4, len(content), len(content) // 40):
        refused(written(tmp_path, content[:end]), "truncated or damaged")


def test_a_changed_byte_of_a_weight_is_noticed(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        raw = file.read("archive/data/weights/weight_0")
    at = content.index(raw)
    changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    refused(written(tmp_path, changed), "record 'data/weights/weight_0' is damaged")


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("data/weights/weight_0", None, "has no record 'data/weights/weight_0'"),
        ("data/weights/weight_0", b"1234", "holds 1 of the 16 numbers of 'layer.weight'"),
        ("data/weights/weight_0", b"123", "does not fit its record"),
        ("data/weights/weight_0", b"", "holds 0 of the 16 numbers"),
        ("data/weights/model_weights_config.json", None, "has no record"),
        ("data/weights/model_weights_config.json", b"{", "is damaged"),
        ("data/weights/model_weights_config.json", b'{"config": {}}', "torch cannot make a graph"),
        ("data/constants/model_constants_config.json", b'{"config": 7}', "is damaged"),
        ("data/sample_inputs/model.pt", b"garbage", "the example inputs are"),
        ("models/model.json", b"", "is damaged"),
        ("models/model.json", b"{", "is damaged"),
        ("models/model.json", b"[]", "is damaged"),
        ("models/model.json", b"\xff\xfe", "is damaged"),
        ("models/model.json", b"[" * 100_000, "is damaged"),
        ("models/model.json", b'{"schema_version": {"major": 8, "minor": 1}}', "is damaged"),
        ("models/model.json", None, "without a program"),
        ("byteorder", b"big", "'big'-endian"),
        ("archive_version", b"1", "the format version '1'"),
    ],
)
def test_damaged_records_are_named(
    tmp_path: Path, content: bytes, name: str, replacement: bytes | None, message: str
) -> None:
    path = written(tmp_path, rewritten(content, records={name: replacement}))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load(path)
    assert str(path) in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("major", "hint"), [(9, "a newer torch"), (7, "export with a newer torch"), (0, "export with")]
)
def test_other_schema_versions_say_which_way_to_go(
    tmp_path: Path, content: bytes, major: int, hint: str
) -> None:
    def edit(description: Json) -> None:
        description["schema_version"] = {"major": major, "minor": 0}
        description["torch_version"] = "3.1.4"

    path = written(tmp_path, rewritten(content, edit))
    error = refused(path, f"schema version {major} (torch '3.1.4')")
    assert hint in (error.hint or "")


def test_an_unknown_part_of_a_newer_minor_version_says_to_update(
    tmp_path: Path, content: bytes
) -> None:
    def edit(description: Json) -> None:
        description["schema_version"]["minor"] += 1
        node = description["graph_module"]["graph"]["nodes"][0]
        node["inputs"][0]["arg"] = {"as_something_new": 1}

    error = refused(written(tmp_path, rewritten(content, edit)), "as_something_new")
    assert "a newer torch" in (error.hint or "")


def test_unknown_fields_of_a_newer_minor_version_are_ignored(
    tmp_path: Path, content: bytes
) -> None:
    def edit(description: Json) -> None:
        description["schema_version"]["minor"] += 1
        description["new_field"] = "anything's"

    load(written(tmp_path, rewritten(content, edit)))


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:/evil", "a\\evil"])
def test_members_with_paths_that_lead_out_are_refused(
    tmp_path: Path, content: bytes, name: str
) -> None:
    bad = io.BytesIO(content)
    with zipfile.ZipFile(bad, "a") as file:
        file.writestr(zipfile.ZipInfo(name), "x")
    refused(written(tmp_path, bad.getvalue()), "has a member with the path")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_doubled_members_are_refused(tmp_path: Path, content: bytes) -> None:
    bad = io.BytesIO(content)
    with zipfile.ZipFile(bad, "a") as file:
        file.writestr("archive/models/model.json", "{}")
    refused(written(tmp_path, bad.getvalue()), "two members of one name")


def test_compressed_records_are_refused_before_they_are_inflated(
    tmp_path: Path, content: bytes
) -> None:
    bomb = rewritten(
        content, records={"data/weights/weight_0": b"\0" * 10_000_000}, method=zipfile.ZIP_DEFLATED
    )
    assert len(bomb) < 100_000
    refused(written(tmp_path, bomb), "is compressed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without the device")
def test_weights_on_a_device_that_is_not_here_say_how_to_move_them(
    tmp_path: Path, content: bytes
) -> None:
    edit = {
        "data/weights/model_weights_config.json": lambda data: data.replace(b'"cpu"', b'"cuda"')
    }
    error = refused(written(tmp_path, rewritten(content, records=edit)), "was on cuda")
    assert "move_to_device_pass" in (error.hint or "")


def test_an_operator_that_this_torch_does_not_know_is_named(tmp_path: Path, content: bytes) -> None:
    def edit(description: Json) -> None:
        description["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.next.default2"

    refused(written(tmp_path, rewritten(content, edit)), "'torch.ops.aten.next.default2'")


def test_a_graph_that_reads_an_unknown_value_is_an_input_error_with_torchs_reason(
    tmp_path: Path, content: bytes
) -> None:
    def edit(description: Json) -> None:
        node = description["graph_module"]["graph"]["nodes"][0]
        node["inputs"][0]["arg"] = {"as_tensor": {"name": "nobody"}}

    error = refused(written(tmp_path, rewritten(content, edit)), "KeyError: 'nobody'")
    assert error.__cause__ is not None


ODD = (None, 0, -1, 1 << 70, 1.5, True, "", "nobody", "it's", "s1", [], {}, [[]], {"as_int": "x"})


def places(value: Any) -> list[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in items:
        found.append((value, key))
        if isinstance(item, dict | list):
            found += places(item)
    return found


@pytest.mark.parametrize(("make", "times"), [(plain, 80), (dynamic, 20)])
@pytest.mark.filterwarnings("ignore")
def test_whatever_one_value_is_replaced_by_the_file_loads_or_is_an_input_error(
    tmp_path: Path, make: Callable[[], torch.export.ExportedProgram], times: int
) -> None:
    content, chance = saved(make()), random.Random(7)
    outcomes = []
    for _ in range(times):

        def edit(description: Json) -> None:
            holder, key = chance.choice(places(description))
            holder[key] = chance.choice(ODD)

        path = written(tmp_path, rewritten(content, edit))
        try:
            load(path)
            outcomes.append(True)
        except InputError as error:
            assert str(path) in str(error)
            outcomes.append(False)
    assert times // 20 < sum(outcomes) < times, "the replacements should matter, but not always"


def test_whatever_bytes_are_changed_the_file_loads_or_is_an_input_error(
    tmp_path: Path, content: bytes
) -> None:
    chance = random.Random(11)
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(chance.choice((1, 1, 3))):
            # the records' headers and the directory are at the ends and between
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        try:
            load(written(tmp_path, bytes(changed)))
        except InputError:
            pass


def test_the_text_of_an_error_has_no_traceback_and_is_short(tmp_path: Path, content: bytes) -> None:
    long = json.dumps({"schema_version": {"major": "x" * 100_000}}).encode()
    path = written(tmp_path, rewritten(content, records={"models/model.json": long}))
    error = refused(path, "damaged")
    assert "Traceback" not in str(error) and len(str(error)) < 1000
