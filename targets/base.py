"""What a target is: something that turns an exported program into files and runs those files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.targets.parts import FIRST
from tokopt.targets.stored_weights import StoredWeights

Runner = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Inputs by name in, wherever they lie; outputs by name out, on the device that computed them."""


class Target(Protocol):
    """One way to run a program.  Implementations live in ``targets/lowerings``, one file each.

    A target is stateless: two calls of ``lower`` with the same program write the same bytes
    unless the implementation's docstring says otherwise.
    """

    @property
    def name(self) -> str:
        """What the user writes after ``--target``."""
        ...

    @property
    def native(self) -> frozenset[str]:
        """The operators of the token dialect that ``lower`` takes as they are."""
        ...

    @property
    def alike(self) -> frozenset[str]:
        """Those of them that read a layer's keys and values where both are in one format alone."""
        ...

    @property
    def in_place(self) -> bool:
        """Whether a step's new rows are put behind caches where these lie, and no cache copied.

        So it is where a program gives its caches whole and reads them by fused attention alone.
        """
        ...

    @property
    def generation(self) -> str | None:
        """The GPU generation (``sm_90``) that machine code made here is for; empty: a CPU's.

        None where what ``lower`` writes holds no machine code.
        """
        ...

    def available(self) -> str | None:
        """Return ``None`` where the target runs on this machine, else the reason it does not."""
        ...

    def lower(
        self,
        exported: ExportedProgram,
        folder: Path,
        output_names: Sequence[str] | None = None,
        weights: StoredWeights | None = None,
        part: str = FIRST,
    ) -> tuple[str, ...]:
        """Write the lowered program into ``folder``; return the names of the files written.

        ``exported`` holds aten operators only: the token dialect is decomposed, but for what the
        target says is ``native``.
        ``output_names`` names its tensor outputs in order; without it the names come from the
        structure of the outputs (see ``signature.py``).  ``weights`` says which weights the folder
        holds already (``save_program``), for targets that can refer to them.  ``part`` names the
        files (``parts.py``), where the folder holds several programs.

        Raises ``UnsupportedError`` for a program the target cannot express and ``InputError``
        for names that do not fit.
        """
        ...

    def choices(self, folder: Path) -> Mapping[str, Mapping[str, str]]:
        """Return, by file, what was decided for this machine's device, in words, by what it is.

        ``folder`` holds what ``lower`` wrote; the manifest has it.  Empty where nothing depends on
        the device.
        """
        ...

    def open(self, folder: Path, part: str = FIRST) -> Runner:
        """Load what ``lower`` wrote.  Raises ``InputError`` for a file that does not load."""
        ...
