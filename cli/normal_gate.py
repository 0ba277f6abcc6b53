"""The gate on the normal form, where bringing a program into it changed what calls compute.

Most of what normalising does leaves every call as it was; running a loop over pieces as one
(``passes/pieces.py``), writing a merge in another form or letting a cache grow that had a fixed
length (``passes/buffers.py``) does not, and what later gates call the original stands behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.tolerances import ORACLE
from tokopt.passes.buffer_inputs import archived_inputs, in_common
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
        given = archived_inputs(archived, normal, inputs)
        wanted = run_program(archived, given, full=True)
        got = run_program(normal, inputs, full=True)[-len(wanted) :]
    worst = max(relative_difference(in_common(a, b), b) for a, b in zip(wanted, got, strict=True))
    what = "loops over pieces, merges and caches in normal form, with the archive's program"
    message = "" if worst <= ORACLE else f"the normal form's outputs differ by {worst:.3g}"
    yield Verdict("normal form", worst <= ORACLE, what, worst, ORACLE, message)
