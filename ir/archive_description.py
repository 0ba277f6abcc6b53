"""The description of one program in an archive: version, JSON, vetting.

``models/<name>.json`` holds ``torch._export.serde.schema.ExportedProgram``.  It is parsed
once: what was checked is what is used.
"""

from __future__ import annotations

import json

import torch
from torch._export.serde import schema
from torch._export.serde.serialize import _dict_to_dataclass

from tokopt.ir.archive import MODELS, Archive
from tokopt.ir.archive_vetting import vet
from tokopt.ir.errors import InputError


def read_description(archive: Archive, name: str) -> schema.ExportedProgram:
    """Parse and vet the description of program ``name``, ready for torch's deserializer.

    Raises ``InputError`` for another schema version, damage, and anything that could run code.
    """
    where = f"{MODELS}{name}.json"
    newer = False
    try:
        data = json.loads(archive.read(where))
        major, minor = data["schema_version"]["major"], data["schema_version"]["minor"]
        _check_version(major, data.get("torch_version"))
        newer = minor > schema.SCHEMA_VERSION[1]  # may hold what this torch does not know
        description: schema.ExportedProgram = vet(_dict_to_dataclass(schema.ExportedProgram, data))
        if not description.graph_module.module_call_graph[0].signature:
            raise InputError("the program does not say how it is called")
    except InputError as error:
        error.where = f"{where}: {error.where}" if error.where else where
        raise
    except Exception as error:  # JSON of any shape
        raise InputError(
            f"the description of program {name!r} is damaged"
            f" ({type(error).__name__}: {error!s:.200})",
            where=where,
            hint="use tokopt with a newer torch" if newer else "copy or save the file again",
        ) from error
    return description


def _check_version(major: int, writer: object) -> None:
    ours = schema.SCHEMA_VERSION[0]
    if major != ours:
        raise InputError(
            f"the program has schema version {major!r:.20} (torch {writer!r:.40})",
            expected=f"schema version {ours}, that of torch {torch.__version__}",
            hint="use tokopt with a newer torch" if major > ours else "export with a newer torch",
        )
