"""Pass: one step from a program to a program; its fields are its options.

A pass is a frozen dataclass.  Its kebab-case name is derived from its class's name
(``InsertStage`` is ``insert-stage`` in pipelines) and never typed twice.  It returns a new program
and leaves the one it was given as it was; the program is valid before and after, not necessarily
in between.  ``requires`` must hold of the program that comes in, ``ensures`` of the one that goes
out; the manager checks both, and that ``modified`` is the truth.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from tokopt.ir.program import Program
from tokopt.passes.spec import Spec


@dataclass(frozen=True)
class PassResult:
    """What a pass returns.

    ``modified`` says whether ``program`` differs from the one that came in; where it is False the
    program is the same object.  ``statistics`` count what was done (tokens, nodes, bytes);
    ``remarks`` are for people: what was applied, and the nearest miss where nothing was.
    """

    program: Program
    modified: bool
    statistics: Mapping[str, int | float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


class Pass(ABC):
    """A pass; subclasses are frozen dataclasses.

    ``name`` is the name in pipelines, ``requires`` and ``ensures`` the specs before and after.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[Spec, ...]] = ()
    ensures: ClassVar[tuple[Spec, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.name = kebab(cls.__name__)

    @abstractmethod
    def run(self, program: Program) -> PassResult:
        """Return the program this pass makes of ``program``, which stays as it was."""


def kebab(name: str) -> str:
    """Return ``insert-stage`` for ``InsertStage``, ``kv-quantize`` for ``KVQuantize``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()
