"""Vetting: every text in a program's description is checked by its place, before torch uses it.

torch makes Python source out of names of values, arguments and parameters, evaluates symbolic sizes
and guards, and resolves call targets.  So every field of the description (the dataclasses of
``torch._export.serde.schema``) has a rule here, and a text without a special rule must be an
identifier: a field of a newer torch cannot slip through.  Sizes are replaced by parsed expressions,
layouts by plain ones; guards and free metadata are dropped, stack traces and module paths cleansed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from torch._export.serde import schema
from torch._export.serde.union import _Union

from tokopt.ir.archive_layout import check_call, identifier, plain_layout, plain_text
from tokopt.ir.archive_targets import check_target
from tokopt.ir.errors import InputError
from tokopt.ir.expression_calls import check_symbol
from tokopt.ir.expressions import parse_expression

_COMPOUND = re.compile(r"(?=.*[*+-])[us0-9 *+-]{3,80}", re.ASCII)
"""Sizes made of symbols ("2*s43"): torch writes their ranges too, which follow from the others."""

_CONTROL = {code: " " for code in (*range(32), *range(127, 160), 0x2028, 0x2029) if code != 10}
_QUOTES = {**_CONTROL, ord("\n"): " ", ord('"'): "`", ord("'"): "`", ord("\\"): "/"}
_DIALECTS = ("", "ATEN", "TRAINING")
_KEPT_METADATA = ("stack_trace", "nn_module_stack")


def _dialect(text: str) -> str:
    if text not in _DIALECTS:
        raise InputError(f"the program is in the dialect {text!r:.80}", expected="ATEN or TRAINING")
    return text


def _metadata(entries: dict[str, str]) -> dict[str, str]:
    """Keep what messages show, as one could print it; the rest is dropped."""
    return {key: str(entries[key]).translate(_CONTROL) for key in _KEPT_METADATA if key in entries}


def _refuse(value: object) -> None:
    raise InputError(
        f"the program holds a pickled object: {value!r:.200}",
        expected="tensors, numbers, strings",
        hint="export the model without TorchBind or opaque objects",
    )


_RULES: dict[tuple[type, str], Callable[[Any], Any]] = {
    (schema.Node, "target"): check_target,
    (schema.Node, "metadata"): _metadata,
    (schema.NamedArgument, "name"): lambda name: name and identifier(name),
    (schema.Argument, "as_operator"): check_target,
    (schema.Argument, "as_custom_obj"): _refuse,
    (schema.InputSpec, "custom_obj"): _refuse,
    (schema.SymExpr, "expr_str"): parse_expression,
    (schema.ModuleCallSignature, "in_spec"): lambda text: check_call(plain_layout(text)),
    (schema.ModuleCallSignature, "out_spec"): plain_layout,
    (schema.ModuleCallEntry, "fqn"): plain_text,
    (schema.InputToParameterSpec, "parameter_name"): plain_text,
    (schema.InputToBufferSpec, "buffer_name"): plain_text,
    (schema.InputToTensorConstantSpec, "tensor_constant_name"): plain_text,
    (schema.BufferMutationSpec, "buffer_name"): plain_text,
    (schema.ParameterMutationSpec, "parameter_name"): plain_text,
    (schema.GradientToParameterSpec, "parameter_name"): plain_text,
    (schema.Argument, "as_string"): plain_text,
    (schema.Argument, "as_strings"): lambda texts: [plain_text(text) for text in texts],
    (schema.ConstantValue, "as_string"): plain_text,
    (schema.GraphModule, "metadata"): lambda _: {},
    (schema.GraphModule, "treespec_namedtuple_fields"): lambda _: {},
    (schema.ExportedProgram, "range_constraints"): lambda ranges: {
        check_symbol(name): vet(limits)
        for name, limits in ranges.items()
        if not _COMPOUND.fullmatch(name)
    },
    (schema.ExportedProgram, "verifiers"): lambda names: [_dialect(name) for name in names],
    (schema.ExportedProgram, "torch_version"): lambda text: str(text)[:40],
    (schema.ExportedProgram, "guards_code"): lambda _: [],
}


def vet(value: Any) -> Any:
    """Check a description from a file and make it safe for torch's deserializer; changes it.

    ``value`` is a dataclass of ``torch._export.serde.schema`` or a list or dictionary of them.
    Raises ``InputError`` naming the first text that is not what its place allows.
    """
    if isinstance(value, list):
        return [vet(item) for item in value]
    if isinstance(value, dict):
        return {identifier(key): vet(item) for key, item in value.items()}
    if isinstance(value, str):
        return identifier(value)
    if not dataclasses.is_dataclass(value):
        return value
    if isinstance(value, schema.NamedArgument) and value.name == "assert_msg":
        # a message that is only shown: quotes in it would end a literal in compiled code
        value.arg = schema.Argument.create(as_string=str(value.arg.value).translate(_QUOTES))
    names = [value.type] if isinstance(value, _Union) else [f.name for f in _fields(value)]
    for name in map(str, names):
        rule = _RULES.get((type(value), name), vet)
        setattr(value, name, rule(getattr(value, name)))
    return value


def _fields(value: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(value)
