"""Instead: what a person can use where a method cannot be placed.

Read off the registry: methods for that kind of stack that read nothing but rows and attention, fold
nothing and remember nothing.  Controls are left out.
"""

from __future__ import annotations

from tokopt.passes.methods.about import needs_in_words
from tokopt.passes.methods.method import Method
from tokopt.passes.methods.registry import METHODS


def instead(role: str) -> str:
    """Return the hint of a refusal in a stack, empty where no method of the library would do."""
    kind = role.rstrip("0123456789")
    if kind == "text":
        words = ", ".join(name for name, method in METHODS.items() if "text" in method.roles)
        return f"words are dropped only by a method that is named and made for them: {words}"
    names = [name for name, method in METHODS.items() if kind in method.roles and _plain(method)]
    return f"{', '.join(names)} can be placed in {role}" if names else ""


def reads(method: Method) -> str:
    """Return what a method must be able to read, as part of a sentence."""
    return " and ".join(needs_in_words(method)) or "the stream"


def _plain(method: Method) -> bool:
    own = method.needs <= {"layers"} and not method.state and not method.ordered
    return own and method.combine is None and method.paper != "control" and not method.calibrated
