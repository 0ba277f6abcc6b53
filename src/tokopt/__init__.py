"""tokopt: a compiler that makes exported vision-language models need far fewer visual tokens."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokopt.cli.compiler import compile as compile
    from tokopt.passes.manager import PassManager as PassManager
    from tokopt.targets.runtime import load as load

__version__ = "0.1.0"
__all__ = ["PassManager", "__version__", "compile", "load"]

_HOMES = {
    "compile": "tokopt.cli.compiler",
    "PassManager": "tokopt.passes.manager",
    "load": "tokopt.targets.runtime",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import tokopt`` alone stays fast."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tokopt' has no attribute {name!r}")
