"""Generation captured: ``prefill``, which gives its cache, and ``decode``, which goes on from it.

Both are compared with the plain model run without a cache on the prompt and the tokens behind it:
that finds a position, a mask or a cache that is not the library's.  Each layer's keys and values
have a free length of their own, so that stages may leave other rows in other layers; where prompts
are padded there is one mask for all layers, and one length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from tokopt.cli.capture import Capture, Inputs, largest_difference, run_captured, traced
from tokopt.cli.capture_call import NamedCall
from tokopt.cli.capture_logits import PromptLogits
from tokopt.cli.capture_request import Request
from tokopt.cli.capture_tracing import index_masks, unmasked_steps
from tokopt.ir.errors import UnsupportedError

STEPS = 2
"""Tokens behind the prompt that are compared."""

IDS, PLACE, MASK = "input_ids", "position_ids", "attention_mask"


class Prefill(NamedCall):
    """``(pixels, input_ids [B,S], ...) -> logits [B,S,V]`` and keys and values ``[B,H,S,D]``."""

    def __init__(self, prompt: PromptLogits) -> None:
        super().__init__(prompt.model, prompt.names)
        self.prompt = prompt

    def call(self, given: dict[str, Any]) -> dict[str, Tensor]:
        """Return the logits of every position and ``past_0``, ... as decode takes them."""
        from transformers import DynamicCache

        cache = DynamicCache()
        output = self.prompt.output(given, use_cache=True, past_key_values=cache)
        return {"logits": output.logits, **_named(cache)}


class Decode(NamedCall):
    """``(input_ids [B,1], position_ids, past_0, ...) -> logits [B,1,V]`` and the longer cache."""

    def call(self, given: dict[str, Any]) -> dict[str, Tensor]:
        """Return the logits and ``present_0``, ...: keys and values with the token's own behind."""
        from transformers import DynamicCache

        past = [given.pop(name) for name in self.names if name.startswith("past_")]
        if MASK in given:  # one mask for all layers
            for rows in past:
                torch._check(given[MASK].shape[1] == rows.shape[2] + 1)
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        with index_masks(), unmasked_steps():
            output = self.model(**given, past_key_values=cache, use_cache=True)
        return {"logits": output.logits, **_named(cache, "present")}


@dataclass(frozen=True)
class Generation:
    """What a capture of a prompt becomes where its programs make further tokens."""

    prompt: Capture
    logits: PromptLogits
    request: Request

    @staticmethod
    def of(prompt: Capture, request: Request) -> Generation:
        """Raise ``UnsupportedError`` for a model whose visual rows are no rows of its text."""
        logits = prompt.module
        if not isinstance(logits, PromptLogits) or not logits.visual.merged:
            raise UnsupportedError(
                "this model's cache is not captured",
                expected="a decoder that reads its images as rows of the prompt",
                hint="leave out --decode",
            )
        return Generation(prompt, logits, request)

    def trace(self) -> dict[str, ExportedProgram]:
        """Trace both programs; raise ``UnsupportedError`` where ``torch.export`` cannot."""
        try:
            return self._traced()
        except UnsupportedError as error:
            error.hint = "leave out --decode; the model alone may be captured all the same"
            raise

    def _traced(self) -> dict[str, ExportedProgram]:
        prefill = Prefill(self.logits).eval()
        inputs = self.prompt.inputs
        first = traced(prefill, inputs, self.prompt.dynamic_shapes)
        with torch.no_grad():
            cache = [rows.contiguous() for rows in list(prefill(*inputs).values())[1:]]
        ids, place, mask = self._behind(inputs, 1)
        told = {IDS: ids, PLACE: place, **({} if mask is None else {MASK: mask})}
        names = [*told, *(f"past_{i}" for i in range(len(cache)))]
        decode = Decode(self.logits.model, names).eval()
        second = traced(decode, (*told.values(), *cache), self._sizes(place, mask, len(cache)))
        return {"prefill": first, "decode": second}

    def differences(self, programs: Mapping[str, ExportedProgram]) -> dict[str, float]:
        """Return the largest difference of any logits to the plain model's, by sample."""
        found = {}
        modules = {name: exported.module() for name, exported in programs.items()}
        for index, inputs in enumerate((self.prompt.inputs, *self.prompt.others)):
            with torch.no_grad():
                wanted = self.prompt.reference(*self._longer(inputs, STEPS))
                got = self._teacher_forced(modules, inputs)
            if (at := self.prompt.padding) is not None:
                kept = torch.cat([inputs[at], torch.ones_like(inputs[at][:, :STEPS])], 1).bool()
                got, wanted = got[kept], wanted[kept]
            found[f"sample {index} and {STEPS} tokens"] = largest_difference(got, wanted)
        return found

    def _teacher_forced(self, modules: Mapping[str, Any], inputs: Inputs) -> Tensor:
        """Return the logits of the prompt and of given tokens behind it, one after the other."""
        first = run_captured(modules["prefill"], inputs)
        logits, cache = [first.pop("logits")], tuple(first.values())
        for step in range(1, STEPS + 1):
            told = [value for value in self._behind(inputs, step) if value is not None]
            output = run_captured(modules["decode"], (*told, *cache))
            logits.append(output.pop("logits"))
            cache = tuple(output.values())
        return torch.cat(logits, 1)

    def _longer(self, inputs: Inputs, steps: int) -> Inputs:
        """Return a sample with ``steps`` tokens of text behind the prompt."""
        named, visual = dict(zip(self.logits.names, inputs, strict=True)), self.logits.visual
        ids, mask = named[IDS], named.get(MASK)
        text = next(i for i in range(STEPS + 1) if i != visual.token)
        ids = torch.cat([ids, torch.full_like(ids[:, :1], text).expand(-1, steps)], 1)
        if mask is not None:
            mask = named[MASK] = torch.cat(
                [mask, torch.ones_like(mask[:, :1]).expand(-1, steps)], 1
            )
        extras = {name: extra.sample(ids, mask) for name, extra in visual.extras.items()}
        return tuple({**named, IDS: ids, **extras}[name] for name in self.logits.names)

    def _behind(self, inputs: Inputs, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the token, position and mask of the ``step``-th token behind the prompt."""
        named = dict(zip(self.logits.names, self._longer(inputs, step), strict=True))
        ids = named[IDS]
        place = torch.full_like(ids[:, :1], ids.shape[1] - 1)
        if PLACE in named:
            place = named[PLACE][..., -1:].contiguous()
        return ids[:, -1:].contiguous(), place, named.get(MASK)

    def _sizes(self, place: Tensor, mask: Tensor | None, layers: int) -> tuple[Any, ...]:
        free = self.request.free_batch
        items = {0: Dim("batch", min=1)} if free else {}
        at = {place.ndim - 2: items[0]} if free else {}
        longest = self.logits.model.config.get_text_config().max_position_embeddings
        past = {**items, 2: Dim.AUTO(min=2, max=longest)}
        masks = [] if mask is None else [{**items, 1: Dim.AUTO(min=3, max=longest + 1)}]
        return (items, at, *masks, *(dict(past) for _ in range(layers)))


def _named(cache: Any, name: str = "past") -> dict[str, Tensor]:
    rows = [one for layer in cache.layers for one in (layer.keys, layer.values)]
    return {f"{name}_{i}": one for i, one in enumerate(rows)}
