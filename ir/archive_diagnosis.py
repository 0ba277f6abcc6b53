"""What a file is, if it is no archive of exported programs: one message for each usual mistake.

Looks at the first bytes and at the names of the zip's members; a pickle is taken apart as opcodes
(``torch.serialization.get_unsafe_globals_in_checkpoint``), never run.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

from torch.serialization import get_unsafe_globals_in_checkpoint

from tokopt.ir.archive import COMPILED, MODELS, Archive
from tokopt.ir.errors import InputError

_EXPECTED = "an archive written by torch.export.save or package_pt2 (.pt2)"
_EXPORT = "torch.export.save(torch.export.export(model.eval(), example_inputs), 'model.pt2')"
_HEADS = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "git lfs pull"),
    b"\x80": ("a pickle (torch.save of an old torch)", _EXPORT),
    b"GGUF": ("a GGUF model", _EXPORT),
    b"\x08": ("an ONNX model", "give the .pt2 that it was made from"),
    b"<": ("an HTML or XML page, perhaps a failed download", "download the file again"),
    b"\x1f\x8b": ("compressed with gzip", "gunzip it first"),
}


def check_path(path: Path) -> None:
    """Raise ``InputError`` if ``path`` is missing, a folder, empty or cannot be read."""
    if path.is_dir():
        raise InputError("the path is a folder", expected=_EXPECTED, hint="name the .pt2 in it")
    try:
        if path.exists() and not path.is_file():
            raise InputError("the path is a device or a pipe", expected=_EXPECTED)
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        raise InputError("there is no such file", expected=_EXPECTED) from error
    except (OSError, ValueError) as error:
        raise InputError(f"the file cannot be read ({error})", expected=_EXPECTED) from error
    if empty:
        raise InputError("the file is empty", expected=_EXPECTED, hint="copy or save it again")


def check_is_zip(file: IO[bytes]) -> None:
    """Raise ``InputError`` saying what the file is if it does not start as a zip does."""
    file.seek(0)
    head = file.read(32)
    if head.startswith(b"PK"):
        return
    kind, hint = "no zip file", _EXPORT
    if head[8:9] == b"{":
        kind, hint = "a safetensors file: weights without a graph", _EXPORT
    for magic, known in _HEADS.items():
        if head.startswith(magic):
            kind, hint = known
    raise InputError(f"the file is {kind}", expected=_EXPECTED, hint=hint)


def check_is_program(archive: Archive, file: IO[bytes]) -> None:
    """Raise ``InputError`` saying what the zip is if it holds no exported program, or code."""
    if archive.below(COMPILED):
        raise InputError(
            "the archive holds compiled libraries (AOTInductor), which loading would run",
            expected=_EXPECTED,
            hint="give the program that it was compiled from",
        )
    if any(name.endswith(".json") for name in archive.below(MODELS)):
        return
    if archive.below("code/"):
        what, hint = "a TorchScript archive (torch.jit.save)", _EXPORT
    elif "data.pkl" in archive:
        file.seek(0)
        try:
            classes = sorted(get_unsafe_globals_in_checkpoint(file))
        except Exception:  # the message only says less
            classes = ["?"]
        what = "a pickled state_dict or tensors (torch.save): weights without a graph"
        if classes:
            what = f"a pickle of Python objects (torch.save), among them {', '.join(classes[:3])}"
        hint = _EXPORT
    elif "serialized_exported_program.json" in archive:
        what, hint = "an exported program of an old torch (before 2.8)", _EXPORT
    elif archive.text("archive_format", "") == "pt2":
        what, hint = "a PT2 archive without a program (no models/*.json)", _EXPORT
    else:
        what, hint = "a zip file that is no PT2 archive", _EXPORT
    raise InputError(f"the file is {what}", expected=_EXPECTED, hint=hint)
