"""Layouts as text: the nesting of a program's arguments and results, in plain containers only.

torch's reader of such a text (a ``TreeSpec`` as JSON) imports modules that the text names, for
enums and for default dictionaries, and fails for a class that is not imported.  Here the text is
rewritten to tuples, lists and dictionaries of plain keys before torch reads it: a class with named
fields (a model output of transformers, say) becomes a dictionary of the same names.
"""

from __future__ import annotations

import json
import keyword
from typing import Any

from tokopt.ir.errors import InputError

_SEQUENCES = {
    "builtins.tuple": "builtins.tuple",
    "builtins.list": "builtins.list",
    "collections.deque": "builtins.list",
    "collections.namedtuple": "builtins.tuple",
}
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
_DEEPEST = 50


def plain_text(text: object) -> str:
    """Return ``text`` if it can stand between quotes in generated code; else ``InputError``."""
    if not isinstance(text, str) or not text.isprintable() or set(text) & set("\"'\\"):
        raise InputError(f"{text!r:.200} is not a plain name")
    return text


def identifier(text: object) -> str:
    """Return ``text`` if it can be a variable in generated code; else ``InputError``."""
    if not isinstance(text, str) or not text.isidentifier() or keyword.iskeyword(text):
        raise InputError(f"{text!r:.200} is not the name of a value")
    return text


def plain_layout(text: object) -> str:
    """Rewrite a serialized layout to plain containers; raises ``InputError`` where it cannot.

    ``text`` and the result are JSON ``[1, {"type", "context", "children_spec"}]``.
    """
    try:
        version, root = json.loads(text)  # type: ignore[arg-type]
        if version != 1:
            raise InputError(f"a layout of version {version!r:.20}", expected="version 1")
        plain = _plain(root, 0)
    except InputError:
        raise
    except Exception as error:  # JSON of any shape
        raise InputError(f"the layout of arguments {text!r:.200} is damaged") from error
    return json.dumps([1, plain])


def check_call(text: str) -> str:
    """Check that keyword arguments in the layout of a call are identifiers; return the layout."""
    children = json.loads(text)[1]["children_spec"]
    if len(children) == 2 and children[1]["type"] == "builtins.dict":
        for name in json.loads(children[1]["context"]):
            identifier(name)
    return text


def _plain(node: dict[str, Any], depth: int) -> dict[str, Any]:
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if kind is None and context is None and children == []:
        return _LEAF
    if depth > _DEEPEST:
        raise InputError("a layout is nested too deeply")
    plain = [_plain(child, depth + 1) for child in children]
    if kind in _SEQUENCES:
        return {"type": _SEQUENCES[kind], "context": "null", "children_spec": plain}
    if kind == "collections.defaultdict":
        keys = context["dict_context"]
    else:
        keys = json.loads(context)
    if isinstance(keys, list) and keys and isinstance(keys[0], list):
        keys = keys[0]  # of a registered dataclass: names of the parts, then of the empty fields
    if not isinstance(keys, list) or len(keys) != len(children) or len(set(keys)) != len(keys):
        raise InputError(
            f"arguments or results are in a container {kind!r:.100} without names for its parts",
            expected="tuples, lists, dictionaries and classes with named fields",
            hint="wrap the model so that it takes and returns such containers",
        )
    keys = [key if type(key) is int else plain_text(key) for key in keys]
    same = kind == "collections.OrderedDict"
    return {
        "type": kind if same else "builtins.dict",
        "context": json.dumps(keys),
        "children_spec": plain,
    }
