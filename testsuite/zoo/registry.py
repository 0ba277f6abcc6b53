"""The zoo: every module of this folder that defines ``build() -> Sample``, by its file's name.

Adding a model is adding one file here; laws, tests and the table follow.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from testsuite.zoo.sample import Sample

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of all models, sorted; no module is imported."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if "\ndef build(" in file.read_text())


def make(name: str) -> Sample:
    """Build and export the model called ``name``."""
    sample = importlib.import_module(f"testsuite.zoo.{name}").build()
    assert isinstance(sample, Sample)
    return sample


def summary(name: str) -> str:
    """Return the first sentence of what the module of a model says it is."""
    text = importlib.import_module(f"testsuite.zoo.{name}").__doc__ or name
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")
