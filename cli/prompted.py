"""Prompted: calibration samples from pictures and prompts, made inputs by a Hugging Face processor.

A folder with one or more ``*.jsonl`` files, a sample on each line::

    {"image": "a.png", "prompt": "what is this?"}

``image`` may be a list, and a picture named by several lines; paths begin at the folder.  A prompt
is put into the processor's chat template where it has one, behind its pictures.  Each sample is a
prompt without padding; neighbours of equal sizes run together.  What the processor gives beyond the
program's inputs (a mask where the program takes none) is left aside; floating point values are
brought to the program's dtype.  No code of a model's repository is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokopt.cli.eval_batch import batch_range, batch_size, padded
from tokopt.cli.inputs import fitting_inputs
from tokopt.ir.errors import InputError
from tokopt.targets.signature import Signature

FORM = '{"image": "a.png", "prompt": "what is this?"}'
Processor = Callable[..., Mapping[str, Any]]


def is_prompted(place: str | Path) -> bool:
    """Return whether a place is a folder of pictures and prompts."""
    return Path(place).is_dir() and any(Path(place).glob("*.jsonl"))


def processor_named(name: str) -> Processor:
    """Return a processor by its folder or name.  ``InputError`` where there is none."""
    try:
        from PIL import Image  # noqa: F401  what reads the pictures
        from transformers import AutoProcessor
    except ImportError as error:
        raise InputError(
            f"--processor needs transformers and Pillow: {error}",
            hint="pip install transformers pillow torchvision",
        ) from error
    try:
        load: Callable[..., Processor] = AutoProcessor.from_pretrained
        return load(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"the processor cannot be loaded: {error}",
            where=name,
            expected="a folder or name that transformers.AutoProcessor.from_pretrained takes",
        ) from error


def prompted(
    folder: str | Path, processor: Processor, signature: Signature, size: int, most: int
) -> list[tuple[dict[str, Tensor], str]]:
    """Return the first ``most`` samples in batches of up to ``size``, each with where it is from.

    Raises ``InputError`` naming the file and line of a sample that is damaged or does not fit.
    """
    try:
        least, size = batch_range(signature)[0], batch_size(signature, size)
    except InputError:  # pictures packed in one row of patches: a prompt is a run
        least, size = 1, 1
    made: list[tuple[dict[str, Tensor], str]] = []
    for (line, where), _ in zip(_lines(Path(folder)), range(most), strict=False):
        try:
            inputs = _inputs(line, Path(folder), processor, signature)
            fitting_inputs(inputs if size == 1 else padded(inputs, least), signature)
        except InputError as error:
            error.where = f"{where}: {error.where}" if error.where else where
            raise
        made.append((inputs, where))
    if not made:
        raise InputError("there are no samples", where=str(folder), expected=FORM)
    if size == 1:
        return made
    found: list[tuple[dict[str, Tensor], str]] = []
    for _, same in groupby(made, lambda one: [value.shape[1:] for value in one[0].values()]):
        group = list(same)
        for start in range(0, len(group), size):
            part = group[start : start + size]
            whole = {k: torch.cat([inputs[k] for inputs, _ in part]) for k in part[0][0]}
            found.append((padded(whole, least), part[0][1]))
    return found


def _lines(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for path in sorted(folder.glob("*.jsonl")):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the prompts cannot be read: {error}", where=str(path)) from error
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            where = f"{path}, line {number}"
            try:
                line = json.loads(text)
            except json.JSONDecodeError as error:
                raise InputError(f"not JSON: {error}", where=where, expected=FORM) from error
            if not isinstance(line, dict) or not isinstance(line.get("image"), str | list):
                raise InputError("there is no image", where=where, expected=FORM)
            if not isinstance(line.get("prompt", ""), str):
                raise InputError("the prompt is no text", where=where, expected=FORM)
            yield line, where


def _inputs(
    line: Mapping[str, Any], folder: Path, processor: Processor, signature: Signature
) -> dict[str, Tensor]:
    """Return what a processor makes of a sample, as far as the program takes it."""
    names = [line["image"]] if isinstance(line["image"], str) else line["image"]
    pictures = [_picture(folder / str(name)) for name in names]
    asked: dict[str, Any] = {"images": pictures, "return_tensors": "pt"}
    if "prompt" in line:
        asked["text"] = _templated(line["prompt"], len(pictures), processor)
    try:
        given = processor(**asked)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
        raise InputError(f"the processor does not take this sample: {error}") from error
    found: dict[str, Tensor] = {}
    for spec in signature.inputs:
        value = given.get(spec.name)
        if not isinstance(value, Tensor):
            raise InputError(
                f"the processor does not make {spec.name!r}",
                expected=f"one that makes {', '.join(s.name for s in signature.inputs)}",
                hint=f"it makes {', '.join(given)}; write the samples as safetensors instead",
            )
        dtype = getattr(torch, spec.dtype)
        found[spec.name] = value.to(dtype) if value.is_floating_point() else value
    return found


def _picture(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"the picture cannot be read: {error}", where=str(path)) from error


def _templated(prompt: str, count: int, processor: Processor) -> str:
    if getattr(processor, "chat_template", None) is None:
        return prompt
    content = [*({"type": "image"} for _ in range(count)), {"type": "text", "text": prompt}]
    messages = [{"role": "user", "content": content}]
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True)  # type: ignore[attr-defined]
    return text
