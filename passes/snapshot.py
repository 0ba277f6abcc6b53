"""Snapshot: what a program was at one moment, so that one can ask later whether it changed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from tokopt.ir.program import Program
from tokopt.ir.text import print_program


@dataclass(frozen=True)
class Snapshot:
    """A program's print, and its tensors with the count of in-place writes each had seen.

    Tensors are referred to, not copied: a write is seen in the count, and an exchanged tensor is
    compared by value.  Names that torch gave to nodes and metadata for people do not count.
    """

    text: str
    tensors: Mapping[str, tuple[Tensor, int]]

    @staticmethod
    def of(program: Program) -> Snapshot:
        """Take a snapshot."""
        tensors = {
            f"{name}: {key}": (value, 0 if value.is_inference() else value._version)
            for name, exported in program.graphs.items()
            for key, value in {**exported.state_dict, **exported.constants}.items()
            if isinstance(value, Tensor)
        }
        return Snapshot(print_program(program), tensors)

    def difference(self, later: Snapshot) -> str | None:
        """Return the first differences in words, or None where the programs are equal."""
        if self.text != later.text:
            lines = difflib.unified_diff(
                self.text.splitlines(), later.text.splitlines(), n=0, lineterm=""
            )
            return "\n".join(line.strip() for line in islice(lines, 3, 7))
        if self.tensors.keys() != later.tensors.keys():
            return f"tensors: {sorted(self.tensors.keys() ^ later.tensors.keys())[0]}"
        for name, (tensor, version) in self.tensors.items():
            other, other_version = later.tensors[name]
            written = tensor is other and version != other_version
            if written or (tensor is not other and not _equal(tensor, other)):
                return f"values of {name}"
        return None


def _equal(a: Tensor, b: Tensor) -> bool:
    same_form = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
    return same_form and (a.data_ptr() == b.data_ptr() or torch.equal(a, b))
