"""Loading: read a PT2 archive into a ``Program`` without running anything that the file says.

``torch.export.load`` runs code of the file in more than a dozen ways: pickles (weights, constants,
example inputs), compiled libraries, ``eval`` of symbolic sizes and guards, imports named in
layouts, and source code made of names.  Here the zip is read by ``Archive``, tensors are mapped as
raw bytes, the description passes ``vet``, and only then does torch's deserializer build the graph.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch
from torch._export.serde.serialize import ExportedProgramDeserializer
from torch.export import ExportedProgram

from tokopt.ir.archive import CONSTANTS, INPUTS, MODELS, WEIGHTS, Archive
from tokopt.ir.archive_description import read_description
from tokopt.ir.archive_diagnosis import check_is_program, check_is_zip, check_path
from tokopt.ir.archive_inputs import read_inputs
from tokopt.ir.archive_layout import plain_text
from tokopt.ir.archive_tensors import TensorReader
from tokopt.ir.errors import InputError
from tokopt.ir.program import Program
from tokopt.ir.unused_symbols import without_notices

_ARCHIVE_VERSION = "0"


def load(path: str | Path, *, check: bool = True) -> Program:
    """Read the archive at ``path`` (``torch.export.save``, ``package_pt2`` or ``ir.save``).

    Every program of the archive is loaded, under its name in it.  It differs from what
    ``torch.export.load`` gives in this: containers other than tuples, lists and dictionaries become
    dictionaries; guards and metadata other than stack traces and module paths are dropped (ranges
    of sizes are kept and checked); quotes in assertion messages are replaced.  Example inputs are
    ``None`` where the file has none.  Operators of ``tokopt::`` must be registered before.

    Weights are mapped, not read: do not write into the file while the program lives (replacing it
    is fine, as ``save`` does).  ``check`` reads the file once, keeping nothing, for its sha256 and
    the checksums of the weights; without it a damaged weight is not noticed, so it is for looking
    at a program, not for running it.

    Raises ``InputError`` naming the file, what is wrong and what to do; never runs the file's code.
    """
    path = Path(path)
    try:
        check_path(path)
        with path.open("rb") as file:
            check_is_zip(file)
            archive = Archive(file)
            check_is_program(archive, file)
            _check_versions(archive)
            tensors = TensorReader(archive, file, check=check)
            names = [n.removesuffix(".json") for n in archive.below(MODELS) if n.endswith(".json")]
            graphs = {name: _read_program(archive, tensors, name) for name in names}
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest() if check else ""
    except InputError as error:
        error.where = f"{path}: {error.where}" if error.where else str(path)
        raise
    return Program(graphs, str(path), digest)


def _check_versions(archive: Archive) -> None:
    if (order := archive.text("byteorder", sys.byteorder)) != sys.byteorder:
        raise InputError(
            f"the file was written on a {order!r:.20}-endian machine",
            hint=f"export the model on a {sys.byteorder}-endian machine",
        )
    if (version := archive.text("archive_version", _ARCHIVE_VERSION)) != _ARCHIVE_VERSION:
        raise InputError(
            f"the archive has the format version {version!r:.20}",
            expected=f"version {_ARCHIVE_VERSION}, which torch {torch.__version__} reads",
            hint="save it with a torch of about the same age as this one",
        )


def _read_program(archive: Archive, tensors: TensorReader, name: str) -> ExportedProgram:
    for kind in (WEIGHTS, CONSTANTS):
        if f"{kind}{name}.pt" in archive:
            raise InputError(
                f"record {kind}{name}.pt is a pickle, the weight format of an old torch",
                hint="load and save it with torch 2.9 or newer, where you trust the file",
            )
    description = read_description(archive, plain_text(name))
    weights = tensors.read(f"{WEIGHTS}{name}_weights_config.json", WEIGHTS)
    constants = tensors.read(f"{CONSTANTS}{name}_constants_config.json", CONSTANTS)
    inputs = read_inputs(archive, f"{INPUTS}{name}.pt")
    try:
        with without_notices():
            loader = ExportedProgramDeserializer()
            return loader.deserialize(description, weights, constants, inputs)
    except Exception as error:  # torch raises whatever the first odd number leads to
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"torch cannot make a graph of program {name!r} ({lines[-1]:.300})",
            expected=f"a program exported with a torch near {torch.__version__}"
            f" (this one: {description.torch_version})",
            hint="export and save it again",
        ) from error
