"""Asked: a method as a person writes it, ``vtc_cls`` or ``downsample{grid=12x12}``."""

from __future__ import annotations

from collections.abc import Mapping

from tokopt.ir.errors import InputError
from tokopt.passes.methods.method import GRID, Method
from tokopt.passes.methods.registry import find_method
from tokopt.passes.option import read_settings
from tokopt.passes.syntax import read_calls

Options = Mapping[str, int | float | str]


def asked_method(text: str) -> tuple[Method, Options]:
    """Return the method and its options.  Raises ``InputError`` where a name is not known."""
    if "{" not in text:
        return find_method(text), {}
    calls = read_calls(text)
    if len(calls) != 1:
        raise InputError(f"{len(calls)} methods are asked for at once", expected="one method")
    method = find_method(calls[0].name)
    options = read_settings(calls[0])
    check_options(method, options)
    return method, options


def check_options(method: Method, options: Options) -> None:
    """Raise ``InputError`` for an option that the method does not have."""
    reads = method.needed(options) | method.wishes
    known = [*method.options, *([GRID] if "places" in reads else [])]
    for name in options:
        if name not in known:
            raise InputError(
                f"{method.name} has no option {name!r}",
                expected="one of " + ", ".join(known) if known else "no options",
            )
