"""Where a model comes from: a Hugging Face folder or hub id; JSON and safetensors only.

Nothing of the repository is executed: no remote code, no pickled weights.  A hub id is downloaded
to the hub's cache (only ``*.json`` and ``*.safetensors`` of the top folder) and is a folder from
then on.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import torch

from tokopt.ir.errors import InputError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def import_transformers() -> Any:
    """Return the ``transformers`` module, quiet; it is an optional dependency."""
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise InputError(
            "exporting needs the transformers library",
            where=str(error),
            hint="pip install 'tokopt[export]'",
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def resolve(source: str) -> Path:
    """Return the folder of ``source``; download it if it is a hub id and no such folder exists."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not HUB_ID.fullmatch(source):
        raise InputError(
            "there is no such model folder",
            where=source,
            expected="a folder with config.json and *.safetensors, or a hub id like owner/name",
        )
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors"]
        return Path(snapshot_download(source, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:  # no network, offline mode, no such repository
        raise InputError(
            "there is no such folder, and the hub gives no such model",
            where=f"{source}: {str(error).strip().splitlines()[0]}",
            expected="a local folder, or a hub id that can be reached",
            hint="download the model on a machine with network and give its folder",
        ) from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Return the object in ``folder/name``; ``{}`` if there is no such file."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("this file cannot be read as JSON", where=str(path)) from error
    if not isinstance(content, dict):
        raise InputError("this file holds no JSON object", where=str(path))
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """Return the model's config.json, which must name a ``model_type``."""
    config = read_json(folder, "config.json")
    if not isinstance(config.get("model_type"), str):
        raise InputError(
            "this folder describes no model",
            where=str(folder / "config.json"),
            expected="a config.json that names a model_type",
        )
    return config


def read_image_processor(folder: Path) -> dict[str, Any]:
    """Return the image processor's settings, old or new file name; ``{}`` if there are none."""
    nested = read_json(folder, "processor_config.json").get("image_processor")
    return nested if isinstance(nested, dict) else read_json(folder, "preprocessor_config.json")


def load(folder: Path, auto_class: str, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """Load the model in ``dtype``, eval, no gradients; every weight must be in the files."""
    transformers = import_transformers()
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise InputError(
            "the model cannot be loaded",
            where=f"{folder}: {type(error).__name__}: {str(error).strip()[:300]}",
            expected="a config.json and *.safetensors that fit it (pickled weights are refused)",
        ) from error
    missing = sorted(k for k in info["missing_keys"] if not k.startswith("pooler."))
    if missing:  # the pooler of a backbone is allowed: no output that is exported reads it
        raise InputError(
            f"{len(missing)} weights are missing and would be random",
            where=f"{folder}: {', '.join(missing[:5])}",
            expected="a checkpoint of the class that config.json names",
        )
    for part in model.modules():
        if getattr(part, "_can_set_experts_implementation", bool)():
            part.set_experts_implementation("batched_mm")  # others sort rows by expert
    return model.eval().requires_grad_(False)
