"""The targets there are: every module of ``targets/lowerings`` that lists some in ``TARGETS``.

Adding a target is adding one file there.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from tokopt.ir.errors import InputError
from tokopt.targets import lowerings
from tokopt.targets.base import Target

PREFERRED = ("onnxruntime-cuda", "onnxruntime-cpu")
"""Default targets, best first; the last needs nothing but this package's dependencies."""


@cache
def targets() -> dict[str, Target]:
    """Return every target by name, whether it is available on this machine or not."""
    found: dict[str, Target] = {}
    for module in pkgutil.iter_modules(lowerings.__path__, lowerings.__name__ + "."):
        for target in importlib.import_module(module.name).TARGETS:
            found[target.name] = target
    return dict(sorted(found.items()))


def find(name: str) -> Target:
    """Return the target called ``name``; ``InputError`` names those there are."""
    if name not in targets():
        raise InputError(f"there is no target {name!r}", expected="one of " + ", ".join(targets()))
    return targets()[name]


def default() -> Target:
    """Return the best target that runs here: ONNX Runtime on CUDA where it works, else on CPU."""
    for name in PREFERRED[:-1]:
        if find(name).available() is None:
            return find(name)
    return find(PREFERRED[-1])
