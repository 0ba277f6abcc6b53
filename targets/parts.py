"""Parts: the files of one of several programs in an artifact.

An artifact made for several budgets holds one lowered program for each.  The first has the plain
names (``model.onnx``, ``plan.toml``), so that it is what a reader finds who knows of no others;
each other one has its budget in its files' names: ``model-0.1.onnx``, ``plan-0.1.toml``.  A model
that came as several programs has each one's name there: ``model-prefill.onnx``.  Of several prompt
lengths (buckets) the shortest has the name of its budget, each other one its length behind it:
``model-p256.onnx``, ``model-0.1-p256.onnx``.
"""

from __future__ import annotations

from collections.abc import Sequence

FIRST = ""
"""The part that has the plain names."""


def part_of(budget: float) -> str:
    """Return the part of a further budget."""
    return f"-{budget:g}"


def part_named(program: str) -> str:
    """Return the part of one of a model's several programs."""
    return f"-{program}"


def bucket_part(part: str, bucket: int, buckets: Sequence[int]) -> str:
    """Return the part of one of a budget's prompt buckets, given ascending."""
    return part if bucket == buckets[0] else f"{part}-p{bucket}"


def named_by(part: str) -> str:
    """Return the name of the program that a part was named after."""
    return part.removeprefix("-")


def of_part(file: str, part: str) -> str:
    """Return a file's name in a part: ``model.aoti.pt2`` in ``-0.1`` is ``model-0.1.aoti.pt2``."""
    stem, dot, ending = file.partition(".")
    return f"{stem}{part}{dot}{ending}"
