"""Versions: what is installed, read from package metadata so that nothing heavy is imported."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import tokopt

PACKAGES = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnx": ("onnx",),
    "transformers": ("transformers",),
}


def versions() -> dict[str, str]:
    """Return the versions that a bug report needs, and where this tokopt lies."""
    found = {"tokopt": tokopt.__version__, "path": str(Path(tokopt.__file__).parent)}
    found |= {"python": platform.python_version(), "platform": platform.platform()}
    for name, distributions in PACKAGES.items():
        found[name] = next(filter(None, map(_installed, distributions)), "not installed")
    return found


def version_text() -> str:
    """Return versions for people, one a line; the first is ``tokopt`` and its version."""
    return "\n".join(f"{name} {text}" for name, text in versions().items())


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
