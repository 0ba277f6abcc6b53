"""Saving: write a ``Program`` as a PT2 archive; the same program always gives the same bytes.

What ``torch.export.save`` writes differs from run to run in one thing, and from path to path in
another: the ``from_node`` history in the metadata holds addresses, and the archive's root folder is
named after the file.  Both are left out here.  A weight that several programs share is written
once, as raw bytes at a multiple of 64, so that other files can refer to it.  The file is written
beside its place and renamed, and plain ``torch.export.load`` reads a program named ``model``.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch._export.serde import schema
from torch._export.serde import serialize as serde
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveWriter

from tokopt.ir.archive import CONSTANTS, INPUTS, MODELS, WEIGHTS, Archive
from tokopt.ir.archive_inputs import check_inputs
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.program import Program
from tokopt.ir.torch_writing import writing

Places = dict[tuple[int, torch.dtype], int]
"""Storages by address and element type: where in the file their bytes begin."""


def save(program: Program, path: str | Path) -> Places:
    """Write ``program`` to ``path`` (``.pt2``); weights as raw bytes, example inputs if plain.

    Returns where the weights lie, which holds while ``program`` lives.
    Raises ``InputError`` where the file cannot be written and ``UnsupportedError`` for what only a
    pickle could hold (tensor subclasses, TorchBind objects) or torch cannot serialize.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(beside) as file:
            records = _write(program, file)
        with beside.open("rb") as written:
            archive = Archive(written)
            places = {key: archive.extent(record)[0] for key, record in records.items()}
        os.replace(beside, path)
        return places
    except OSError as error:
        raise InputError(f"the file cannot be written ({error})", where=str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


_Records = dict[tuple[int, torch.dtype], str]


def _write(program: Program, file: IO[bytes]) -> _Records:
    weights = {name: graph.state_dict for name, graph in program.graphs.items()}
    constants = {name: graph.constants for name, graph in program.graphs.items()}
    with PT2ArchiveWriter(file) as archive:
        records = _write_tensors(archive, weights, WEIGHTS, "weight_", "_weights_config.json")
        more = _write_tensors(archive, constants, CONSTANTS, "tensor_", "_constants_config.json")
        for name, graph in program.graphs.items():
            archive.write_bytes(f"{MODELS}{name}.json", _description(graph, f"program {name!r}"))
            archive.write_bytes(f"{INPUTS}{name}.pt", _inputs(graph))
    return {**more, **records}


def _write_tensors(
    archive: PT2ArchiveWriter,
    programs: Mapping[str, Mapping[str, Any]],
    folder: str,
    prefix: str,
    suffix: str,
) -> _Records:
    """Write every storage once, and for each program which views into them its tensors are."""
    records: _Records = {}
    written = 0
    for program, tensors in programs.items():
        config: dict[str, Any] = {}
        for name, tensor in tensors.items():
            if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != (
                torch.strided
            ):
                raise UnsupportedError(
                    f"{name!r} of program {program!r} is a {type(tensor).__name__}",
                    expected="dense tensors, which are written as raw bytes",
                )
            storage = tensor.untyped_storage()
            key = storage.data_ptr(), tensor.dtype  # a record has one element type
            # storages without bytes share a null address
            record = records.get(key) if len(storage) else None
            if record is None:
                record, written = f"{prefix}{written}", written + 1
                archive.archive_file.write_record(folder + record, storage.cpu(), len(storage))
                if len(storage):
                    records[key] = record
            config[name] = schema.PayloadMeta(
                path_name=record,
                is_param=isinstance(tensor, torch.nn.Parameter),
                use_pickle=False,
                tensor_meta=serde.serialize_tensor_meta(tensor),
            )
        text = json.dumps(serde._dataclass_to_dict(schema.PayloadConfig(config)))
        archive.write_string(f"{folder}{program}{suffix}", text)
    return {key: folder + record for key, record in records.items()}


def _description(graph: ExportedProgram, where: str) -> bytes:
    """Serialize the graph and everything about it but its tensors."""
    try:
        text = serde.serialize(
            graph,
            serialize_state_dict=False,
            serialize_constants=False,
            serialize_example_inputs=False,
        ).exported_program
    except Exception as error:  # torch raises whatever the first odd value leads to
        raise UnsupportedError(
            f"torch cannot serialize it ({error!s:.300})", where=where
        ) from error
    return json.dumps(_without_history(json.loads(text))).encode()


def _without_history(value: Any) -> Any:
    """Drop ``metadata.from_node`` of every node, in graphs inside graphs too."""
    if isinstance(value, list):
        return [_without_history(item) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(metadata := value.get("metadata"), dict):
        metadata.pop("from_node", None)
    return {key: _without_history(item) for key, item in value.items()}


def _inputs(graph: ExportedProgram) -> bytes:
    """Serialize the example inputs if ``load`` would read them, else nothing."""
    if graph.example_inputs is None:
        return b""
    try:
        check_inputs(*graph.example_inputs)
    except InputError:
        return b""
    content = io.BytesIO()
    torch.save(graph.example_inputs, content, pickle_protocol=2)
    return content.getvalue()
