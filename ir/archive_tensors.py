"""Tensors of an archive: raw records and their shapes; a pickled tensor is refused.

Follows ``torch.export.pt2_archive._package`` (``PayloadConfig``): a record holds a whole storage,
and each weight is a strided view into one, so that weights which were tied stay tied.  Records are
mapped, not read: a page of weights costs memory once something computes on it.
"""

from __future__ import annotations

import json
import mmap
import re
import sys
from typing import IO

import torch
from torch._export.serde import schema
from torch._export.serde import serialize as serde

from tokopt.ir.archive import Archive
from tokopt.ir.archive_layout import plain_text
from tokopt.ir.errors import InputError

_RECORD = re.compile(r"(weight|tensor)_\d{1,9}", re.ASCII)
_PARAMETER_HINT = "save plain tensors: no tensor subclasses, TorchBind or opaque objects"


_ALIGNED = 64
"""Bytes at whose multiples torch's writer puts records; others are read, as kernels need it."""

_UNRESERVED = 0x4000 if sys.platform == "linux" else 0
"""``MAP_NORESERVE``, which Python names from 3.13 on: a file larger than the memory maps too."""


class TensorReader:
    """Maps the weights and constants of all programs of one archive, each record once.

    Pages are private: writing to a tensor changes no file.  With ``check``, the CRC of every record
    is checked, and a parameter that several programs hold with equal bytes, as torch writes it, is
    one tensor afterwards; without, weights are not read at all.
    """

    def __init__(self, archive: Archive, file: IO[bytes], *, check: bool) -> None:
        self._archive, self._check = archive, check
        flags, access = mmap.MAP_PRIVATE | _UNRESERVED, mmap.PROT_READ | mmap.PROT_WRITE
        self._mapping = mmap.mmap(file.fileno(), 0, flags=flags, prot=access)
        self._storages: dict[str, torch.Tensor] = {}
        self._parameters: dict[tuple[int, int], list[str]] = {}
        self._taken: set[str] = set()

    def read(self, config: str, folder: str) -> dict[str, torch.Tensor]:
        """Tensors by qualified name, as the record ``config`` lists them, from ``folder``.

        Raises ``InputError`` for pickled, missing or short records and for damaged configurations.
        """
        self._taken = set()
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
        # buffers may be written to, so they are never merged
        storage = self._parameter(record) if payload.is_param else self._storage(record)
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

    def _parameter(self, record: str) -> torch.Tensor:
        """Return the bytes of a record, those of another program's equal one where there is one."""
        if record in self._storages or not self._check:
            return self._storage(record)
        form = self._archive.size(record), self._archive.checksum(record)
        equals = self._parameters.setdefault(form, [])
        # parameters that are equal inside one program, such as norms, stay apart
        free = (known for known in equals if known not in self._taken)
        same = next((known for known in free if self._archive.same(known, record)), record)
        if same is record:
            equals.append(record)
        self._taken.add(same)
        self._storages[record] = self._storage(same)
        return self._storages[record]

    def _storage(self, record: str) -> torch.Tensor:
        """Return the bytes of a record as a flat tensor of ``uint8``."""
        if record not in self._storages:
            self._storages[record] = self._bytes(record)
        return self._storages[record]

    def _bytes(self, record: str) -> torch.Tensor:
        start, size = self._archive.extent(record)
        if size == 0:
            return torch.empty(0, dtype=torch.uint8)
        if start % _ALIGNED:
            return torch.frombuffer(bytearray(self._archive.read(record)), dtype=torch.uint8)
        if self._check:
            self._archive.check(record)
        return torch.frombuffer(self._mapping, dtype=torch.uint8, count=size, offset=start)


def _on(tensor: torch.Tensor, device: torch.device, name: str) -> torch.Tensor:
    try:
        return tensor.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"{name!r} was on {device} when the program was exported; there is none here",
            hint="torch.export.passes.move_to_device_pass(program, 'cpu') before saving",
        ) from error
