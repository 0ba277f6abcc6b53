"""``manifest.json``: what an artifact is, what it was made from and what was checked.

Compiling the same input with the same versions gives the same manifest except for ``run``, for
``measured`` amounts of time (``latency``), and for the hash of an AOTInductor package.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tokopt import __version__
from tokopt.ir.decoding import Decoding
from tokopt.ir.errors import InputError
from tokopt.ir.links import Link
from tokopt.ir.memory import Memory
from tokopt.ir.placeholders import Placeholders
from tokopt.targets.padding import Padding
from tokopt.targets.parts import FIRST
from tokopt.targets.programs import ProgramEntry
from tokopt.targets.records import field_of, from_json, to_json
from tokopt.targets.refresh import Refresh
from tokopt.targets.signature import Signature

MANIFEST = "manifest.json"
FORMAT = "tokopt artifact"
SCHEMA_VERSION = 11
"""2 adds ``placeholders`` and ``variants``, 3 ``programs`` and ``links``, 4 what the selector costs
and ``memory``, 5 ``padding`` and masks of placeholders, 6 ``decoding``, 7 several programs in
variants, ``cache`` and ``device``, 8 ``refresh``, 9 ``sparse``, 10 ``coders`` of programs and the
``window`` of a cached layer, 11 ``choices``; older ones still load."""
OK, FAILED = "ok", "failed"


@dataclass(frozen=True)
class Amount:
    """Share of the original (1.0 = all of it) or seconds; None where nothing was measured."""

    predicted: float | None
    measured: float | None


@dataclass(frozen=True)
class LayerSpend:
    """What one attention layer spends, by kind (``tokens``, ``flops``, ``kv``)."""

    layer: str
    spent: Mapping[str, Amount]


@dataclass(frozen=True)
class StageCost:
    """What a stage itself does in one run: operations, and bytes read and written."""

    site: str
    flops: int
    bytes: int


@dataclass(frozen=True)
class Budget:
    """What was asked for and what is spent, by kind; ``latency`` is in seconds, others shares.

    ``flops_saved``: operations that the model no longer does in one run; ``selector``: what the
    stages do to save them, in plan order, which ``total["flops"]`` includes.
    """

    requested: Mapping[str, float] = field(default_factory=dict)
    total: Mapping[str, Amount] = field(default_factory=dict)
    layers: tuple[LayerSpend, ...] = ()
    flops_saved: int | None = None
    selector: tuple[StageCost, ...] = ()


@dataclass(frozen=True)
class GateResult:
    """One verification: ``compared`` says what with what; differences are absolute."""

    gate: str
    passed: bool
    compared: str
    max_difference: float | None = None
    tolerance: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Variant:
    """The program of a further budget: its files' ``part``, and what the manifest has of each."""

    part: str
    signature: Signature
    budget: Budget
    gates: tuple[GateResult, ...]
    memory: tuple[Memory, ...] = ()
    padding: Padding | None = None
    programs: tuple[ProgramEntry, ...] = ()
    links: tuple[Link, ...] = ()
    refresh: Refresh | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """What a manifest has of the budget it is seen from, by name."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "part"}


@dataclass(frozen=True)
class CachedLayer:
    """How decode stores one layer's keys and values; ``note``: why not as it was asked for.

    ``bytes_per_token``: of one row of one item, all heads and both sides, with all that is stored
    beside the codes; ``full`` is the same in 16 bits.  So much takes each of the last rows, at most
    ``window`` of them, where rows are coded in blocks.
    """

    layer: int
    key: str
    value: str
    bytes_per_token: float
    full: float
    note: str = ""
    window: int = 0

    def share(self, rows: float) -> float:
        """Return the bytes of so many rows against 16 bits, as many of them waiting as may."""
        waiting = min(rows, self.window)
        coded = (rows - waiting) * self.bytes_per_token / self.full
        return (waiting + coded) / rows if rows else 1.0


@dataclass(frozen=True)
class SparseStep:
    """A second decode program, for caches of at least ``rows`` rows: its files' ``part``.

    ``full`` layers read all rows, ``select`` ones too and choose ``pages`` of ``page`` rows, the
    last ``recent`` among them; the others read the rows that the last of these in front of them
    chose.  ``note``: how the layers were found.
    """

    part: str
    method: str
    rows: int
    full: tuple[int, ...]
    select: tuple[int, ...]
    page: int
    pages: int
    recent: int
    note: str = ""


@dataclass(frozen=True)
class Run:
    """What is not reproducible: when (UTC, ISO 8601), how long each stage took, log hashes."""

    created: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """``files`` and ``run.files`` map relative names to sha256; ``seal`` fills them in.

    ``signature``, ``budget``, ``gates``, ``programs`` and ``links`` are those of the first budget,
    ``variants`` has the further ones.  ``placeholders``: what every item of an input must hold for
    the visual rows to find a place.  ``memory``: inputs and outputs by which the program hands
    itself what its stages keep from one call to the next.  ``padding``: the constant prompt lengths
    that there is a program for each of, and what is padded to run them; ``signature`` is that of
    any length.
    ``decoding``: how the program behind the main one makes the next token, where that is known.
    ``device``: of which latency was predicted, empty where of none.  ``cache``: how decode's layers
    store what they read, empty where that is in full.  ``refresh``: the program that runs in the
    place of the first budget's every so many calls, where that one reuses what it computed.
    ``sparse``: what decodes on long caches.  ``choices``: by lowered file, what the target decided
    for the device that it was compiled on, in words.
    """

    target: str
    signature: Signature
    placeholders: tuple[Placeholders, ...] = ()
    input_sha256: str = ""
    seed: int = 0
    budget: Budget = Budget()
    gates: tuple[GateResult, ...] = ()
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    files: Mapping[str, str] = field(default_factory=dict)
    run: Run = Run()
    variants: tuple[Variant, ...] = ()
    programs: tuple[ProgramEntry, ...] = ()
    links: tuple[Link, ...] = ()
    memory: tuple[Memory, ...] = ()
    padding: Padding | None = None
    decoding: Decoding | None = None
    device: str = ""
    cache: tuple[CachedLayer, ...] = ()
    refresh: Refresh | None = None
    sparse: SparseStep | None = None
    choices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    status: str = OK
    format: str = FORMAT
    schema_version: int = SCHEMA_VERSION

    @property
    def main(self) -> str:
        """The name of the main program of several: the last that follows none."""
        return [one.name for one in self.programs if not one.follows][-1]

    @property
    def parts(self) -> dict[str, Manifest]:
        """The manifest as seen from each budget, by part; the first budget comes first."""
        own = {v.part: replace(self, **v.fields, variants=()) for v in self.variants}
        return {FIRST: self, **own}


def versions() -> dict[str, str]:
    """Return the versions of everything that shapes an artifact."""
    runtime = ("onnxruntime-gpu", "onnxruntime")
    found = {name: _version(name) for name in ("torch", "onnx", "onnxscript")}
    found["onnxruntime"] = next((v for v in map(_version, runtime) if v != "none"), "none")
    return {"tokopt": __version__, "python": platform.python_version(), **found}


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json`` into ``folder``."""
    (folder / MANIFEST).write_text(to_json(manifest), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read ``manifest.json``.

    ``InputError`` where ``folder`` is no artifact, the file is damaged, or a newer tokopt
    wrote it.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"not a tokopt artifact: {error}",
            where=str(folder),
            expected=f"a folder with a {MANIFEST} in it, as `tokopt compile` writes",
        ) from error
    if field_of(text, "format", str(path)) != FORMAT:
        raise InputError("this manifest is not of a tokopt artifact", where=str(path))
    schema = field_of(text, "schema_version", str(path))
    if not isinstance(schema, int) or schema > SCHEMA_VERSION:
        raise InputError(
            f"the artifact has schema version {schema}",
            where=str(path),
            expected=f"at most {SCHEMA_VERSION}",
            hint="install the tokopt that wrote it, or a newer one",
        )
    return from_json(Manifest, upgraded(text) if schema < SCHEMA_VERSION else text, str(path))


def upgraded(text: str) -> str:
    """Return the text of an older manifest with what it lacks: nothing was recorded there."""
    lists: dict[str, Any] = {"placeholders": [], "variants": [], "programs": [], "links": []}
    found = {
        **lists,
        "cache": [],
        "device": "",
        "padding": None,
        "decoding": None,
        "refresh": None,
        "sparse": None,
        "choices": {},
        **json.loads(text),
    }
    found["placeholders"] = [{"mask": None, **asked} for asked in found["placeholders"]]
    found["cache"] = [{"window": 0, **layer} for layer in found["cache"]]
    lacking: dict[str, Any] = {"padding": None, "programs": [], "links": [], "refresh": None}
    found["variants"] = [{**lacking, **variant} for variant in found["variants"]]
    uncounted: dict[str, Any] = {"flops_saved": None, "selector": []}
    for part in (found, *found["variants"]):
        if isinstance(part, dict) and isinstance(part.get("budget"), dict):
            part["budget"] = {**uncounted, **part["budget"]}
            part.setdefault("memory", [])
            part["programs"] = [{"coders": [], **one} for one in part["programs"]]
    return json.dumps(found)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
