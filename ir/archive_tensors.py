"""Tensors of an archive: raw records and their shapes; a pickled tensor is refused.

Follows ``torch.export.pt2_archive._package`` (``PayloadConfig``): a record holds a whole storage,
and each weight is a strided view into one, so that weights which were tied stay tied.
"""

from __future__ import annotations

import json
import re

import torch
from torch._export.serde import schema
from torch._export.serde import serialize as serde

from tokopt.ir.archive import Archive
from tokopt.ir.archive_layout import plain_text
from tokopt.ir.errors import InputError

_RECORD = re.compile(r"(weight|tensor)_\d{1,9}", re.ASCII)
_PARAMETER_HINT = "save plain tensors: no tensor subclasses, TorchBind or opaque objects"


class TensorReader:
    """Reads the weights and constants of all programs of one archive, each record once.

    A parameter that several programs hold under one name with equal bytes is one tensor afterwards.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._storages: dict[str, torch.Tensor] = {}
        self._parameters: dict[tuple[str, int, int], torch.Tensor] = {}

    def read(self, config: str, folder: str) -> dict[str, torch.Tensor]:
        """Tensors by qualified name, as the record ``config`` lists them, from ``folder``.

        Raises ``InputError`` for pickled, missing or short records and for damaged configurations.
        """
        try:
            entries = json.loads(self._archive.read(config))
            payloads = serde._dict_to_dataclass(schema.PayloadConfig, entries).config.items()
        except InputError:
            raise
        except Exception as error:  # JSON of any shape
            raise InputError(f"record {config!r} is damaged ({error!s:.200})") from error
        return {plain_text(name): self._tensor(name, payload, folder) for name, payload in payloads}

    def _tensor(self, name: str, payload: schema.PayloadMeta, folder: str) -> torch.Tensor:
        meta = payload.tensor_meta
        if payload.use_pickle is not False or meta is None:
            raise InputError(f"{name!r} is stored as a pickle", hint=_PARAMETER_HINT)
        if not isinstance(payload.path_name, str) or not _RECORD.fullmatch(payload.path_name):
            raise InputError(f"{name!r} is stored in {payload.path_name!r:.100}")
        try:
            dtype = serde.deserialize_scalar_type(meta.dtype)
            sizes = serde.deserialize_size(meta.sizes)
            strides = serde.deserialize_stride(meta.strides)
            offset = serde.deserialize_storage_offset(meta.storage_offset)
            device = serde.deserialize_device(meta.device)
            last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
            negative = min(*sizes, *strides, offset, 0) < 0
        except Exception as error:  # torch checks none of the numbers
            raise InputError(f"the shape of {name!r} is damaged ({error!s:.200})") from error
        record = folder + payload.path_name
        storage = self._storage(record, name if payload.is_param else None)
        if len(storage) % dtype.itemsize or negative:
            raise InputError(f"{name!r} does not fit its record {record!r}")
        flat = storage.view(dtype)
        if 0 not in sizes and last >= len(flat):
            raise InputError(
                f"record {record!r} holds {len(flat)} of the {last + 1} numbers of {name!r}",
                hint="copy or save the file again",
            )
        tensor = _on(torch.as_strided(flat, sizes, strides, offset), device, name)
        if payload.is_param:
            return torch.nn.Parameter(tensor, requires_grad=meta.requires_grad)
        return tensor

    def _storage(self, record: str, parameter: str | None) -> torch.Tensor:
        """Return the bytes of a record as a flat tensor of ``uint8``."""
        if record in self._storages:
            return self._storages[record]
        size = self._archive.size(record)
        storage = torch.empty(size, dtype=torch.uint8)
        self._archive.read_into(record, storage.numpy().data)
        if parameter is not None:  # buffers may be written to, so they are never shared
            key = (parameter, size, self._archive.checksum(record))
            known = self._parameters.setdefault(key, storage)
            storage = known if torch.equal(known, storage) else storage
        self._storages[record] = storage
        return storage


def _on(tensor: torch.Tensor, device: torch.device, name: str) -> torch.Tensor:
    try:
        return tensor.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"{name!r} was on {device} when the program was exported; there is none here",
            hint="torch.export.passes.move_to_device_pass(program, 'cpu') before saving",
        ) from error
