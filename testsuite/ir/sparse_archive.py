"""A large archive that takes no space: the weights are holes in the file, of no checksum."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import torch
from torch._export.serde import schema
from torch._export.serde import serialize as serde
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram

from tokopt.ir.save import _description

ALIGNED = 64


def export_fake(
    module: type[torch.nn.Module], sizes: object, *inputs: torch.Tensor
) -> ExportedProgram:
    """Export ``module(sizes)`` in fp16 without a byte of weights; ``inputs`` are only looked at."""
    before = torch.get_default_dtype()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        torch.set_default_dtype(torch.float16)
        try:
            built = module(sizes).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
        fakes = tuple(mode.from_tensor(value) for value in inputs)
        return torch.export.export(built, fakes, strict=False)


def write_sparse(exported: ExportedProgram, path: Path) -> int:
    """Write ``exported`` with a hole for each weight; return the bytes of the weights."""
    config: dict[str, schema.PayloadMeta] = {}
    holes: dict[str, int] = {}
    for name, tensor in exported.state_dict.items():
        record = f"weight_{len(holes)}"
        holes[record] = tensor.numel() * tensor.itemsize
        meta = serde.serialize_tensor_meta(tensor)
        config[name] = schema.PayloadMeta(record, True, False, meta)
    entries = serde._dataclass_to_dict(schema.PayloadConfig(config))
    with zipfile.ZipFile(path, "w") as file:
        for record, size in holes.items():
            _dig(file, f"archive/data/weights/{record}", size)
        for name, content in (
            ("models/model.json", _description(exported, "")),
            ("data/weights/model_weights_config.json", json.dumps(entries)),
            ("data/constants/model_constants_config.json", '{"config": {}}'),
            ("archive_format", "pt2"),
        ):
            file.writestr(f"archive/{name}", content)
    return sum(holes.values())


def _dig(file: zipfile.ZipFile, name: str, size: int) -> None:
    """Add a member of ``size`` bytes that are never written."""
    assert file.fp is not None
    member = zipfile.ZipInfo(name)
    member.CRC, member.file_size, member.compress_size = 0, size, size
    member.header_offset = file.fp.tell()
    plain = member.header_offset + len(member.FileHeader(zip64=False)) + 4
    padding = -plain % ALIGNED
    member.extra = b"FB" + padding.to_bytes(2, "little") + b"\0" * padding
    file.fp.write(member.FileHeader(zip64=False))
    assert file.fp.tell() % ALIGNED == 0
    file.fp.seek(size, 1)
    file.filelist.append(member)
    file.NameToInfo[name] = member
    file.start_dir = file.fp.tell()
    file._didModify = True  # type: ignore[attr-defined]
