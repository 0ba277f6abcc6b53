"""Generate: prefill once, then decode token by token on the cache that prefill left.

Positions continue from the prompt's original length, however few visual rows the cache holds: the
rows that stayed keep their places.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor

from tokopt.ir.decoding import Decoding
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.targets.base import Runner
from tokopt.targets.chained import Chain
from tokopt.targets.manifest import Manifest
from tokopt.targets.sampling import GREEDY, Sampling
from tokopt.targets.signature import Signature


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
    in the shape of decode's own input (by default the prompt's length).  ``prefill`` runs all
    programs but decode from inputs by outer name.

    Raises ``InputError`` for numbers that fit no run: stop ids that are missing or that the model
    does not have, more tokens than the cache or the positions have room for.
    """
    how = decoding_of(manifest)
    stop = _stop_ids(stop)
    chain = Chain(manifest.programs, manifest.links)
    prompt = inputs[chain.inputs[manifest.main, how.prompt]]
    first = prefill(inputs)
    handed = [link for link in manifest.links if link.target == how.program]
    given = {link.input: first[chain.outputs[link.source, link.output]] for link in handed}
    logits = first[chain.outputs[manifest.main, how.logits]][:, -1]
    signature = next(p.signature for p in manifest.programs if p.name == how.program)
    _check_tokens(max_new_tokens, stop, logits.shape[-1])
    place = _first_position(how, signature, prompt, position)
    _check_room(how, signature, given, place, max_new_tokens)
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
        step = {**given, how.token: token[:, None]}
        if how.position is not None:
            step[how.position] = place + (len(made) - 1)
        outputs = decode(step)
        logits = outputs[how.next_logits][:, -1]
        for cache in how.caches:
            rows = outputs[cache.output]
            before = given[cache.input]
            given[cache.input] = rows if cache.whole else torch.cat([before, rows], cache.dim)
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


def _first_position(
    how: Decoding, signature: Signature, prompt: Tensor, given: Tensor | None
) -> Tensor:
    """Return the first new token's position in the shape of decode's input."""
    spec = next((s for s in signature.inputs if s.name == how.position), None)
    if given is None:
        if spec is not None and len(spec.shape) != prompt.ndim:
            raise InputError(
                f"decode takes positions of several axes as {how.position!r}",
                expected=f"position={spec.dtype} {list(spec.shape)}, that of the first new token",
            )
        return torch.full((prompt.shape[0], 1), prompt.shape[1])
    if spec is None:
        raise InputError("decode takes no position", expected="position=None")
    items = (prompt.shape[0], 1)
    fits = given.ndim == len(spec.shape) and given.shape[-2:] == items
    if not fits or str(given.dtype) != f"torch.{spec.dtype}":
        raise InputError(
            "the position of the first new token does not fit",
            where=f"given {str(given.dtype).removeprefix('torch.')} {list(given.shape)}",
            expected=f"{spec.dtype} {list(spec.shape)}, for {items[0]} prompts",
        )
    return given


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


def _check_room(
    how: Decoding, signature: Signature, given: Mapping[str, Tensor], place: Tensor, most: int
) -> None:
    """Refuse what would overflow before anything is decoded; the last token needs no step."""
    sizes = {spec.name: spec.shape for spec in signature.inputs}
    for cache in how.caches:
        rows, size = given[cache.input].shape[cache.dim], sizes[cache.input][cache.dim]
        room = signature.ranges.get(size, (0, None))[1] if isinstance(size, str) else size
        if room is not None and rows + most - 2 > room:
            raise InputError(
                f"the cache overflows: {rows} rows of the prompt and {most} new tokens",
                where=f"{how.program}.{cache.input}",
                expected=f"at most {max(room - rows + 2, 1)} new tokens behind this prompt",
                hint="lower max_new_tokens, or export decode with a longer cache",
            )
    last = int(place.max()) + most - 2
    if how.places is not None and how.position is not None and most > 1 and last >= how.places:
        raise InputError(
            f"the model has {how.places} positions, and the last token would be at {last}",
            where=f"{how.program}.{how.position}",
            expected=f"at most {max(how.places - int(place.max()) + 1, 1)} new tokens",
        )
