"""The gate on the normal form, where bringing a program into it changed what calls compute.

Most of what normalising does leaves every call as it was; running a loop over pieces as one
(``passes/pieces.py``) or writing a merge in another form does not, and what all later gates call
the original stands behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.tolerances import ORACLE
from tokopt.passes.normalize import computes_alike
from tokopt.passes.validate import Verdict, relative_difference, run_program


def judge_normal(
    archived: ExportedProgram, normal: ExportedProgram, inputs: Mapping[str, Tensor]
) -> Iterator[Verdict]:
    """Yield the verdict on a program in normal form; none where it computes like the archive's.

    Both run in fp32, whatever their dtype.
    """
    if computes_alike(normal):
        return
    with torch.no_grad():
        wanted = run_program(archived, inputs, full=True)
        got = run_program(normal, inputs, full=True)[-len(wanted) :]
    worst = max(map(relative_difference, wanted, got))
    what = "loops over pieces and merges in normal form, with the archive's program"
    message = "" if worst <= ORACLE else f"the normal form's outputs differ by {worst:.3g}"
    yield Verdict("normal form", worst <= ORACLE, what, worst, ORACLE, message)
