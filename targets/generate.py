"""Generate: prefill once, then decode token by token on the cache that prefill left.

Positions continue from the prompt's original length, however few visual rows the cache holds: the
rows that stayed keep their places.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor

from tokopt.ir.decoding import Decoding
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.targets.base import Runner
from tokopt.targets.chained import Chain
from tokopt.targets.coding import coded, saliences
from tokopt.targets.first_step import check_room, first_mask, first_position
from tokopt.targets.manifest import Manifest
from tokopt.targets.programs import Coder
from tokopt.targets.sampling import GREEDY, Sampling


class Streamer(Protocol):
    """What is shown each new token, as transformers' streamers are."""

    def put(self, value: Tensor) -> object:
        """Take the new tokens ``[B]``."""

    def end(self) -> object:
        """Take note that there are no more."""


def generate(
    manifest: Manifest,
    prefill: Runner,
    decode: Runner,
    inputs: Mapping[str, Tensor],
    *,
    code: Callable[[Coder], Runner],
    max_new_tokens: int,
    stop: Collection[int] | None = None,
    position: Tensor | None = None,
    sampling: Sampling = GREEDY,
    streamer: Streamer | None = None,
) -> Tensor:
    """Return the new tokens, int64 ``[B, T]`` with T at most ``max_new_tokens``.

    An item ends with its first token of ``stop`` and repeats it until all items have ended; with
    an empty ``stop`` none ends early, and without one the run is refused: which token ends an
    answer no graph says.  ``position`` is that of the first new token, for each item
    in the shape of decode's own input (by default the prompt's length, or one behind the last of
    the positions that the prompt was given).  ``prefill`` runs all programs but decode from inputs
    by outer name; ``code`` opens those that code rows between two calls of decode.

    Raises ``InputError`` for numbers that fit no run: stop ids that are missing or that the model
    does not have, more tokens than the cache or the positions have room for;
    and for prompts that are not padded in front.
    """
    how = decoding_of(manifest)
    stop = _stop_ids(stop)
    chain = Chain(manifest.programs, manifest.links)
    prompt = inputs[chain.inputs[manifest.main, how.prompt]]
    first = prefill(inputs)
    handed = [link for link in manifest.links if link.target == how.program]
    given = {link.input: first[chain.outputs[link.source, link.output]] for link in handed}
    logits = first[chain.outputs[manifest.main, how.logits]][:, -1].cpu()
    entry = next(p for p in manifest.programs if p.name == how.program)
    signature = entry.signature
    _check_tokens(max_new_tokens, stop, logits.shape[-1])
    told = {name: inputs[chain.inputs[manifest.main, name]] for name in how.told}
    place = first_position(how, signature, prompt, told, position)
    check_room(how, signature, given, place, max_new_tokens, entry.coders)
    mask = first_mask(how, signature, prompt, told, given, entry.coders)
    ranks = saliences(entry.coders)
    ends, source = torch.tensor(sorted(stop), dtype=torch.int64), sampling.source()
    done, made = torch.zeros(logits.shape[0], dtype=torch.bool), list[Tensor]()
    while True:
        token = sampling.choose(logits, source)
        token = torch.where(done, made[-1], token) if made else token
        made.append(token)
        done = done | torch.isin(token, ends)
        if streamer is not None:
            streamer.put(token)
        if len(made) == max_new_tokens or bool(done.all()):
            break
        given = coded(entry.coders, given, code)
        step = {**given, how.token: token[:, None]}
        if how.position is not None:
            step[how.position] = place + (len(made) - 1)
        if how.mask is not None and mask is not None:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            step[how.mask] = mask
        outputs = decode(step)
        logits = outputs[how.next_logits][:, -1].cpu()
        for cache in how.caches:
            rows = outputs[cache.output]
            before = given[cache.input]
            given[cache.input] = rows if cache.whole else torch.cat([before, rows], cache.dim)
        given |= {name: outputs[name] for name in ranks}
    if streamer is not None:
        streamer.end()
    return torch.stack(made, 1)


def decoding_of(manifest: Manifest) -> Decoding:
    """Return how an artifact decodes; raise ``UnsupportedError`` where that is not known."""
    if manifest.decoding is None:
        raise UnsupportedError(
            "the artifact does not generate",
            expected="one decode program behind prefill, which takes a token, its position and "
            "caches of free length, and puts the token's keys and values behind them",
            hint="compile an archive with prefill and decode; run programs of other forms one by "
            "one with .program(name)",
        )
    return manifest.decoding


def _stop_ids(stop: Collection[int] | None) -> Collection[int]:
    if stop is None:
        raise InputError(
            "there are no stop ids",
            expected="stop={id, …}, the tokens that end an answer (the tokenizer's eos_token_id)",
            hint="stop=() makes max_new_tokens tokens, whatever they are",
        )
    return stop


def _check_tokens(most: int, stop: Collection[int], vocabulary: int) -> None:
    if most < 1:
        raise InputError(f"max_new_tokens is {most}", expected="at least 1")
    for one in stop:
        if not 0 <= one < vocabulary:
            raise InputError(
                f"the model has no token {one} to stop at",
                expected=f"token ids from 0 to {vocabulary - 1}",
            )
