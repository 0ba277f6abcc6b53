"""Pipeline: passes as text and back, ``normalize,select{site=vision:end method=vtc_cls keep=14}``.

``syntax.py`` has the grammar, ``option.py`` the values.  What is printed is read back as equal
passes; options at their default are left out.  Every error names the column.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from tokopt.passes.base import Pass
from tokopt.passes.option import describe_kind, print_value, read_value
from tokopt.passes.registry import registered_passes
from tokopt.passes.syntax import Call, fail, read_calls


def print_pipeline(passes: Iterable[Pass]) -> str:
    """Return passes as text that ``parse_pipeline`` reads back."""
    return ",".join(print_pass(step) for step in passes)


def print_pass(step: Pass) -> str:
    """Return one pass as text."""
    options = [
        f"{key}={print_value(getattr(step, field.name))}"
        for key, field in options_of(type(step)).items()
        if getattr(step, field.name) != default_of(field)
    ]
    return step.name + (f"{{{' '.join(options)}}}" if options else "")


def parse_pipeline(text: str, known: Mapping[str, type[Pass]] | None = None) -> tuple[Pass, ...]:
    """Read a pipeline; ``known`` are the passes by name (default: all of ``tokopt.passes``).

    Raises ``InputError`` with the column for bad syntax, an unknown pass or option, a value of
    another type, a missing or repeated option.
    """
    known = registered_passes() if known is None else known
    return tuple(_build(call, text, known) for call in read_calls(text))


def options_of(kind: type[Pass]) -> dict[str, dataclasses.Field[Any]]:
    """Return a pass's options by their name in pipelines (kebab-case; underscores are read too)."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    return {field.name.replace("_", "-"): field for field in fields if field.init}


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return an option's default, ``dataclasses.MISSING`` where it must be given."""
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def describe_pass(kind: type[Pass]) -> str:
    """Return a pass's options for people: ``select{site=<a text> keep=<an integer> seed=0}``."""
    kinds, shown = typing.get_type_hints(kind), []
    for key, field in options_of(kind).items():
        default = default_of(field)
        free = default is dataclasses.MISSING
        shown.append(
            f"{key}={f'<{describe_kind(kinds[field.name])}>' if free else print_value(default)}"
        )
    return kind.name + (f"{{{' '.join(shown)}}}" if shown else "")


def _build(call: Call, text: str, known: Mapping[str, type[Pass]]) -> Pass:
    kind = known.get(call.name.replace("_", "-"))
    if kind is None:
        what = f"there is no pass {call.name!r}"
        fail(text, call.at, what, f"one of {', '.join(known)}", _nearest(call.name, known))
    kinds, options, values = typing.get_type_hints(kind), options_of(kind), dict[str, Any]()
    for key, (value, at) in call.options.entries.items():
        field = options.get(key.replace("_", "-"))
        if field is None:
            listed = f"one of {', '.join(options)}" if options else "no options"
            what = f"pass {kind.name!r} has no option {key!r}"
            fail(text, at, what, listed, _nearest(key, options))
        if field.name in values:
            fail(text, at, f"{key!r} is given twice")
        try:
            values[field.name] = read_value(value, kinds[field.name])
        except ValueError as error:
            fail(
                text, value.at, f"option {key!r} of pass {kind.name!r} has another type", str(error)
            )
    for key, field in options.items():
        if field.name not in values and default_of(field) is dataclasses.MISSING:
            fail(text, call.at, f"pass {kind.name!r} needs the option {key!r}", f"{key}=…")
    return kind(**values)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""
