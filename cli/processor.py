"""Processor: pictures and a prompt become a program's inputs as transformers makes them.

A prompt is put into the processor's chat template where it has one, behind its pictures.  What the
processor gives beyond the program's inputs (a mask where the program takes none) is left aside;
floating point values are brought to the program's dtype.  No code of a model's repository is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.targets.signature import Signature

Processor = Callable[..., Mapping[str, Any]]


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


def ending_tokens(name: str, processor: Any) -> set[int]:
    """Return the ids that end an answer: the tokenizer's, and those the model's own config adds.

    Raises ``InputError`` where neither says any.
    """
    from transformers import GenerationConfig

    said = [getattr(getattr(processor, "tokenizer", None), "eos_token_id", None)]
    with suppress(OSError, ValueError):  # a folder without generation_config.json
        said.append(GenerationConfig.from_pretrained(name).eos_token_id)
    found = {id for one in said for id in (one if isinstance(one, list) else [one])}
    if found == {None}:
        raise InputError(
            "the processor does not say which tokens end an answer",
            where=name,
            expected="a tokenizer with an eos_token",
            hint="--stop ID,ID",
        )
    return {int(id) for id in found if id is not None}


def prompt_inputs(
    images: Sequence[Path],
    prompt: str | None,
    processor: Processor,
    signature: Signature,
    answer: str = "",
) -> dict[str, Tensor]:
    """Return what a processor makes of one prompt's pictures, as far as the program takes it.

    ``answer`` is text behind the prompt.

    Raises ``InputError`` for a picture that cannot be read and what the processor does not take.
    """
    asked: dict[str, Any] = {"return_tensors": "pt"}
    if images:
        asked["images"] = [_picture(path) for path in images]
    if prompt is not None:
        asked["text"] = _templated(prompt, len(images), processor) + answer
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
