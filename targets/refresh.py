"""Refresh: a program that computes everything, run every so many calls in another's place.

The program of a budget that reuses what layers made of an earlier call needs such a call: its
*reference* has the same outputs and gives what is reused besides.  Which of both runs next is in
what goes from call to call: at age 0, as at first, the reference does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from tokopt.targets.base import Runner
from tokopt.targets.signature import Signature


@dataclass(frozen=True)
class Refresh:
    """``part``: of the reference's files; ``age``: the input that is 0 where it is to run.

    ``signature``: what the reference takes and gives.  One call in ``every`` is one.
    """

    part: str
    age: str
    every: int
    signature: Signature

    def runner(self, opened: Callable[[str], Runner], part: str) -> Runner:
        """Return one function for both programs; each is ``opened`` when first needed."""
        opened = cache(opened)
        taken = [one.name for one in self.signature.inputs]

        def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            if float(inputs[self.age].sum()) == 0:
                return opened(self.part)({name: inputs[name] for name in taken})
            return opened(part)(inputs)

        return run


def reference_part(part: str) -> str:
    """Return the part of a budget's reference: ``model-reference.onnx``."""
    return f"{part}-reference"
