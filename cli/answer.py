"""Answer: what ``tokopt run`` prints where it makes tokens: text as it comes, or numbers.

A picture and a prompt become inputs through a Hugging Face processor, whose tokenizer says which
tokens end an answer and what they spell.  Without one the inputs are tensors and the answer ids.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tokopt.cli.answer_options import MOST
from tokopt.cli.inputs import check_merges, fitting_inputs, read_inputs
from tokopt.cli.processor import Processor, ending_tokens, processor_named, prompt_inputs
from tokopt.cli.write_tensors import write_tensors
from tokopt.ir.errors import InputError
from tokopt.targets.chained import Chain, signature_for
from tokopt.targets.generate import Streamer, decoding_of
from tokopt.targets.runtime import Artifact
from tokopt.targets.sampling import Sampling


def answer(args: argparse.Namespace, artifact: Artifact) -> None:
    """Generate and print: streamed text, a line of ids for each prompt, or one JSON object.

    The options go together (``check_options``).  Raises ``InputError`` for inputs that do not fit
    and missing stop ids, ``UnsupportedError`` for an artifact that does not generate.
    """
    decoding_of(artifact.manifest)
    processor = None if args.processor is None else processor_named(args.processor)
    asked = _asked(args, artifact, processor)
    stop = args.stop
    if stop is None and processor is not None:
        stop = ending_tokens(args.processor, processor)
    if stop is None:
        raise InputError(
            "there are no stop ids",
            expected="--stop ID,ID, the tokens that end an answer, or a --processor that knows",
            hint="--stop none makes --max-new-tokens tokens, whatever they are",
        )
    streamer = None
    if processor is not None and asked.prompts == 1 and not args.json:
        streamer = _printing(processor)
    how_drawn = {name: getattr(args, name) for name in ("temperature", "top_p", "seed")}
    tokens = artifact.generate(
        asked.inputs,
        max_new_tokens=MOST if args.max_new_tokens is None else args.max_new_tokens,
        stop=stop,
        position=asked.position,
        sampling=Sampling(
            **{name: drawn for name, drawn in how_drawn.items() if drawn is not None}
        ),
        streamer=streamer,
    )
    if args.output is not None:
        write_tensors({"tokens": tokens}, Path(args.output))
    answers = [_answer(row, stop) for row in tokens.tolist()]
    texts = None if processor is None else [_spelled(processor, row) for row in answers]
    if args.json:
        target = args.target or artifact.manifest.target
        data = {"artifact": str(args.artifact), "target": target, "tokens": answers, "text": texts}
        print(json.dumps({"schema_version": 1, **data, "written": args.output}))
    elif streamer is None:
        for line in texts or [" ".join(map(str, row)) for row in answers]:
            print(line)


@dataclass(frozen=True)
class _Asked:
    """Inputs by outer name, of how many prompts, and the first new token's position if given."""

    inputs: dict[str, Tensor]
    prompts: int
    position: Tensor | None = None


def _asked(args: argparse.Namespace, artifact: Artifact, processor: Processor | None) -> _Asked:
    """Return what the options ask, once it fits."""
    manifest = artifact.manifest
    how, chain = decoding_of(manifest), Chain(manifest.programs, manifest.links)
    signature = signature_for(manifest, ())
    position, given = None, args.inputs
    if args.inputs is not None:
        tensors = read_inputs(args.inputs)
        if how.position is not None:
            position = tensors.pop(chain.inputs[how.program, how.position], None)
        inputs = fitting_inputs(tensors, signature)
    else:
        assert processor is not None
        given, images = args.prompt, args.image or []
        made = prompt_inputs([Path(i) for i in images], args.prompt, processor, signature)
        inputs = fitting_inputs(made, signature)
    check_merges(inputs, manifest.placeholders, given)
    return _Asked(inputs, inputs[chain.inputs[manifest.main, how.prompt]].shape[0], position)


def _answer(tokens: list[int], stop: Collection[int]) -> list[int]:
    """Return an item's tokens up to its first stop id; behind it, it is only repeated."""
    ends = [at for at, token in enumerate(tokens) if token in stop]
    return tokens[: ends[0] + 1] if ends else tokens


def _spelled(processor: Any, tokens: list[int]) -> str:
    text: str = processor.tokenizer.decode(tokens, skip_special_tokens=True)
    return text


def _printing(processor: Any) -> Streamer:
    """Return what prints words as they are made."""
    from transformers import TextStreamer

    make: Callable[..., Streamer] = TextStreamer
    return make(processor.tokenizer, skip_special_tokens=True)
