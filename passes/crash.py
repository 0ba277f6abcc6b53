"""PassFault: our bug inside a pipeline, with all that is needed to see it again."""

from __future__ import annotations

import shlex
import traceback
from pathlib import Path

from tokopt.ir.errors import InternalError, TokoptError
from tokopt.ir.program import Program
from tokopt.ir.save import save


class PassFault(InternalError):
    """A pass crashed, broke its contract or left a broken graph.

    ``program`` is what the pipeline was given, ``pipeline`` its text up to the pass at fault.
    """

    def __init__(self, error: InternalError, program: Program, pipeline: str) -> None:
        super().__init__(error.what, where=error.where, expected=error.expected, hint=error.hint)
        self.program, self.pipeline = program, pipeline

    def write(self, directory: Path) -> None:
        """Write ``input.pt2``, ``pipeline.txt`` and ``traceback.txt``; the hint names the command.

        What cannot be written is said in a note of the error: the fault itself comes first.
        """
        model = directory / "input.pt2"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "pipeline.txt").write_text(self.pipeline + "\n")
            (directory / "traceback.txt").write_text("".join(traceback.format_exception(self)))
            save(self.program, model)
        except (TokoptError, OSError) as error:
            self.add_note(f"no complete reproducer in {directory}: {error}")
            return
        command = ["tokopt", "opt", str(model), "-p", self.pipeline]
        self.hint = f"report this with the folder {directory}; seen again by: {shlex.join(command)}"
