"""How vision transformers are captured: pixels to class logits, or to the backbone's tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.export import Dim

from tokopt.cli.capture import Capture
from tokopt.cli.capture_request import Request, noise
from tokopt.cli.capture_visual import pixel_pair
from tokopt.ir.errors import InputError, UnsupportedError


class ImageOutput(nn.Module):
    """``pixel_values [B,3,h,w] ->`` the field ``output`` of what ``model`` returns.

    ``settings`` are constant keyword arguments of the model's forward.
    """

    def __init__(self, model: Any, output: str, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.output, self.settings = model, output, dict(settings)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits ``[B,C]`` or tokens ``[B,N,H]``."""
        return getattr(self.model(pixel_values=pixel_values, **self.settings), self.output)


def auto_class(config: Mapping[str, Any]) -> str:
    """Return the auto class for the architecture that ``config`` names."""
    name = (config.get("architectures") or ["Model"])[0]
    if name.endswith("ForImageClassification"):
        return "AutoModelForImageClassification"
    if name.endswith("Model"):
        return "AutoModel"
    raise UnsupportedError(
        f"the architecture {name} cannot be exported",
        expected="...Model or ...ForImageClassification",
    )


def prepare(model: Any, request: Request, processor: Mapping[str, Any]) -> Capture:
    """Build samples for ``model`` at the requested, else the processor's, else its own size."""
    asked = (request.prompt_length, request.frames, request.images > 1, request.padding)
    if any(asked) or request.free_length:
        raise InputError(
            f"{model.config.model_type} reads no prompt",
            expected="no --prompt-length, --images, --frames, --padding or --dynamic length",
        )
    if request.free_batch and model.config.model_type == "pixtral":
        raise UnsupportedError(
            "the batch of pixtral cannot be left free: patches of all images are packed",
            hint="leave out --dynamic",
        )
    own = pixel_pair(model.config.image_size)
    height, width = request.image_size or _processor_size(processor) or own
    patch = pixel_pair(model.config.patch_size)
    if height % patch[0] or width % patch[1]:
        raise InputError(
            f"an image of {height}x{width} is no whole number of patches",
            expected=f"multiples of {patch[0]}x{patch[1]} pixels",
            hint="--image-size",
        )
    # Where the library does not interpolate its position table by itself it is asked to.
    asks = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    settings = {"interpolate_pos_encoding": True} if asks and (height, width) != own else {}
    output = "logits" if hasattr(model, "classifier") else "last_hidden_state"
    module = ImageOutput(model, output, settings)
    samples = [
        (noise(batch, model.config.num_channels, height, width, seed=i, dtype=model.dtype),)
        for i, (batch, _) in enumerate(request.sizes(0))
    ]
    shapes = ({0: Dim("batch", min=1)},) if request.free_batch else None
    visual = (height // patch[0]) * (width // patch[1])
    facts: dict[str, int | str] = {"image_size": f"{height}x{width}", "output": output}
    facts["visual_tokens"] = visual
    return Capture(module, module, samples[0], tuple(samples[1:]), shapes, facts)


def _processor_size(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the size that the processor always produces, if it produces one."""
    for step, key in (("do_center_crop", "crop_size"), ("do_resize", "size")):
        size = processor.get(key)
        if not processor.get(step):
            continue
        if isinstance(size, int) and step == "do_center_crop":
            return size, size
        if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
            return int(size["height"]), int(size["width"])
    return None
