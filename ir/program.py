"""Program: one or several exported graphs that travel together; immutable, weights shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch.export import ExportedProgram

from tokopt.ir.errors import UnsupportedError

MAIN_NAMES = ("model", "forward", "prefill")
"""Names under which the graph that reads pixels is looked for in an archive of several."""


@dataclass(frozen=True)
class Program:
    """One or several ``ExportedProgram`` of one archive.

    ``graphs`` maps the archive's names to graphs; ``source`` is the file (for messages) and
    ``sha256`` the hash of its bytes (``""`` for a program made in memory or loaded unchecked).
    """

    graphs: Mapping[str, ExportedProgram]
    source: str = "<memory>"
    sha256: str = ""

    @staticmethod
    def of(exported: ExportedProgram, source: str = "<memory>") -> Program:
        """Wrap one exported graph that was made in this process."""
        return Program({"model": exported}, source)

    @property
    def main_name(self) -> str:
        """Name of the graph that stages are placed in: the only one, or ``forward``/``prefill``."""
        if len(self.graphs) == 1:
            return next(iter(self.graphs))
        for name in MAIN_NAMES:
            if name in self.graphs:
                return name
        raise UnsupportedError(
            f"the archive holds {len(self.graphs)} programs and none is the main one",
            where=self.source,
            expected="one program, or one named " + ", ".join(MAIN_NAMES),
            hint="name the graph that reads the image one of these when saving",
        )

    @property
    def main(self) -> ExportedProgram:
        """The graph that stages are placed in."""
        return self.graphs[self.main_name]

    def with_main(self, exported: ExportedProgram) -> Program:
        """Return this program with its main graph replaced."""
        return replace(self, graphs={**self.graphs, self.main_name: exported})
