"""Plan: the stages to insert, as a small text file that people read, diff, edit and commit.

A ``[[stage]]`` drops rows at a site.  An ``[[attention]]`` drops none: from its site to the end of
that stack attention is another.  A ``[[cache]]`` says how one layer's keys and values are stored,
``[decode]`` which of decode's layers read all rows of a long cache.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from tokopt.ir.errors import InputError

Outputs = Literal["full", "kept", "last"]
Quota = Literal["joint", "image"] | int
SCHEMA = 1


@dataclass(frozen=True)
class Stage:
    """One site, one method, one count.

    ``site`` is ``role:depth`` or ``role:end``; ``keep`` the visual rows of that stack's stream that
    stay (protected rows and text are not counted); ``options`` are the method's own settings.
    ``until``: the later site of the same stack where the rows that went come back, if they do.
    ``quota``: all visual rows compete (``joint``), or each image keeps an equal share (``image``;
    a number where it is stated how many images there are, of equally many rows).
    """

    site: str
    method: str
    keep: int
    options: Mapping[str, int | float | str] = field(default_factory=dict)
    until: str | None = None
    quota: Quota = "joint"


@dataclass(frozen=True)
class Attending:
    """Another attention in every layer from ``site``, ``role:depth``, to the end of the stack."""

    site: str
    method: str
    options: Mapping[str, int | float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Caching:
    """The formats in which decode's layer number ``layer`` stores its keys and its values."""

    layer: int
    key: str
    value: str


@dataclass(frozen=True)
class SparseDecode:
    """Sparse decode: ``full`` layers read all rows, ``select`` ones too and choose for the rest.

    ``options`` are the method's numbers, and ``from``: the rows from which on it is used.
    """

    method: str
    full: tuple[int, ...]
    select: tuple[int, ...]
    options: Mapping[str, int | float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Stages in the order data passes them; ``budget`` is what was asked for, if anything.

    ``cache`` has all layers of decode or none; what its formats measured is not in the plan.
    """

    stages: tuple[Stage, ...]
    budget: float | None = None
    seed: int = 0
    outputs: Outputs = "full"
    attention: tuple[Attending, ...] = ()
    cache: tuple[Caching, ...] = ()
    decode: SparseDecode | None = None

    def to_toml(self) -> str:
        """Return the plan as text; ``Plan.from_toml`` reads it back exactly."""
        lines = [f"schema = {SCHEMA}"]
        if self.budget is not None:
            lines.append(f"budget = {self.budget!r}")
        lines += [f"seed = {self.seed}", f"outputs = {_quoted(self.outputs)}"]
        for stage in self.stages:
            lines += ["", "[[stage]]", f"site = {_quoted(stage.site)}"]
            lines += [f"method = {_quoted(stage.method)}", f"keep = {stage.keep}"]
            lines += [] if stage.until is None else [f"until = {_quoted(stage.until)}"]
            if stage.quota != "joint":
                written = _quoted(stage.quota) if isinstance(stage.quota, str) else stage.quota
                lines.append(f"quota = {written}")
            lines += _option_lines(stage.options)
        for entry in self.attention:
            lines += ["", "[[attention]]", f"site = {_quoted(entry.site)}"]
            lines += [f"method = {_quoted(entry.method)}", *_option_lines(entry.options)]
        for cache in self.cache:
            lines += ["", "[[cache]]", f"layer = {cache.layer}"]
            lines += [f"key = {_quoted(cache.key)}", f"value = {_quoted(cache.value)}"]
        if self.decode is not None:
            lines += ["", "[decode]", f"method = {_quoted(self.decode.method)}"]
            lines += [f"full = {list(self.decode.full)}", f"select = {list(self.decode.select)}"]
            lines += _option_lines(self.decode.options)
        return "\n".join(lines) + "\n"

    @staticmethod
    def from_toml(text: str, source: str = "plan") -> Plan:
        """Read a plan.  Raises ``InputError`` naming the field that is wrong."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"the plan is not TOML: {error}", where=source) from error
        if data.pop("schema", None) != SCHEMA:
            raise InputError(
                "the plan has another schema version", where=source, expected=f"schema = {SCHEMA}"
            )
        stages = data.pop("stage", [])
        attention = data.pop("attention", [])
        cache = data.pop("cache", [])
        decode = data.pop("decode", None)
        budget = _typed(data, "budget", (int, float), None, source)
        seed = _typed(data, "seed", (int,), 0, source)
        outputs = _typed(data, "outputs", (str,), "full", source)
        if outputs not in get_args(Outputs):
            raise InputError(
                f"outputs = {outputs!r}",
                where=source,
                expected="one of " + ", ".join(get_args(Outputs)),
            )
        _nothing_left(data, source)
        return Plan(
            tuple(_stage(s, f"{source}, stage {i + 1}") for i, s in enumerate(stages)),
            None if budget is None else float(budget),
            seed,
            outputs,
            tuple(_attending(a, f"{source}, attention {i + 1}") for i, a in enumerate(attention)),
            tuple(_caching(c, f"{source}, cache {i + 1}", i) for i, c in enumerate(cache)),
            None if decode is None else _sparse_decode(decode, f"{source}, decode"),
        )


def _option_lines(options: Mapping[str, int | float | str]) -> list[str]:
    texts = ((k, _quoted(v) if isinstance(v, str) else repr(v)) for k, v in sorted(options.items()))
    return [f"options.{key} = {text}" for key, text in texts]


def _attending(data: Any, where: str) -> Attending:
    data = _table(data, "[[attention]]", where)
    entry = Attending(
        _typed(data, "site", (str,), ..., where),
        _typed(data, "method", (str,), ..., where),
        _typed(data, "options", (dict,), {}, where),
    )
    _nothing_left(data, where)
    return entry


def _caching(data: Any, where: str, number: int) -> Caching:
    data = _table(data, "[[cache]]", where)
    layer = _typed(data, "layer", (int,), ..., where)
    key, value = (_typed(data, side, (str,), ..., where) for side in ("key", "value"))
    _nothing_left(data, where)
    if layer != number:
        raise InputError(f"layer = {layer}", where=where, expected=f"layer = {number}: all in turn")
    return Caching(layer, key, value)


def _sparse_decode(data: Any, where: str) -> SparseDecode:
    data = _table(data, "[decode]", where)
    method = _typed(data, "method", (str,), ..., where)
    full, select = (_typed(data, name, (list,), ..., where) for name in ("full", "select"))
    options = _typed(data, "options", (dict,), {}, where)
    _nothing_left(data, where)
    for depth in (*full, *select):
        if not isinstance(depth, int) or isinstance(depth, bool):
            raise InputError(f"layer {depth!r}", where=where, expected="numbers of layers")
    return SparseDecode(method, tuple(full), tuple(select), options)


def _table(data: Any, form: str, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise InputError("an entry is not a table", where=where, expected=form)
    return dict(data)


def _stage(data: Any, where: str) -> Stage:
    data = _table(data, "[[stage]]", where)
    stage = Stage(
        _typed(data, "site", (str,), ..., where),
        _typed(data, "method", (str,), ..., where),
        _typed(data, "keep", (int,), ..., where),
        _typed(data, "options", (dict,), {}, where),
        _typed(data, "until", (str,), None, where),
        checked_quota(_typed(data, "quota", (str, int), "joint", where), where),
    )
    if stage.keep < 0:
        raise InputError(f"keep = {stage.keep}", where=where, expected="no negative number")
    _nothing_left(data, where)
    return stage


def checked_quota(value: str | int, where: str) -> Quota:
    """Return a quota that is one.  ``InputError`` names the others."""
    words: tuple[Quota, ...] = ("joint", "image")
    if value in words or (isinstance(value, int) and value > 0):
        return value if isinstance(value, int) else words[words.index(value)]
    raise InputError(
        f"quota = {value!r}",
        where=where,
        expected="joint, image, or the number of images in a prompt",
    )


def _typed(
    data: dict[str, Any], key: str, kinds: tuple[type, ...], default: Any, where: str
) -> Any:
    value = data.pop(key, default)
    if value is ...:
        raise InputError(f"{key} is missing", where=where, expected=f"{key} = …")
    if value is not default and (not isinstance(value, kinds) or isinstance(value, bool)):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"{key} = {value!r}", where=where, expected=f"a value of type {names}")
    return value


def _nothing_left(data: Mapping[str, Any], where: str) -> None:
    if data:
        raise InputError(f"unknown field {next(iter(data))!r}", where=where)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
