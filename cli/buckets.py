"""Buckets: programs of a few constant prompt lengths, made of one whose prompt is free.

Every bucket is judged by the gate ``padding``: run on a padded prompt, it must keep the rows and
give the outputs of the free program on the prompt as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import sympy
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.candidate import Piece
from tokopt.cli.target_gate import against_runner
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.lengths import length_of
from tokopt.ir.placeholders import Placeholders
from tokopt.ir.prompt import Prompt, find_prompt
from tokopt.ir.specialise import specialise
from tokopt.ir.tensors import tensor_outputs
from tokopt.passes.validate import Checked, Verdict, run_program
from tokopt.targets.base import Runner
from tokopt.targets.padding import Cropped, Filled, Padding
from tokopt.targets.parts import bucket_part

Wanted = Sequence[Placeholders]


def checked_buckets(asked: Sequence[int] | None) -> tuple[int, ...]:
    """Return prompt lengths, ascending.  ``InputError`` for one twice, or that is no length."""
    if asked is None:
        return ()
    if not asked or min(asked) < 1 or len(set(asked)) < len(asked):
        said = ", ".join(map(str, asked)) or "none"
        raise InputError(f"prompt buckets {said}", expected="different lengths, at least one")
    return tuple(sorted(asked))


def refuse_buckets(buckets: Sequence[int], where: str) -> None:
    """Refuse buckets for a model of several programs."""
    if buckets:
        raise UnsupportedError(
            "prompt buckets for several programs",
            where=where,
            expected="a model that came as one program",
        )


def padding_of(
    checked: Checked,
    final: ExportedProgram,
    names: Sequence[str],
    buckets: Sequence[int],
    wanted: Wanted,
) -> Padding:
    """Return what is padded and cut off to run a program in buckets; ``final`` is its free form.

    Raises ``InputError`` for lengths it does not take, and ``UnsupportedError`` where no input
    masks padding although the decoder is cut: its last row would be a padded one.
    """
    facts, prompt = checked.facts, find_prompt(checked.facts)
    _check_lengths(checked, prompt, buckets)
    consumer = facts.consumer
    cut = [s.site for s in checked.plan.stages if facts.find_site(s.site)[0] is consumer]
    if cut and not prompt.masks:
        raise UnsupportedError(
            f"no input says which rows of a prompt are padding, and {cut[0]} reads the last row",
            expected="an attention mask among the inputs, [batch, prompt length]",
            hint="export with one (tokopt export --padding), or place all stages in the tower",
        )
    if checked.applied.memory:
        raise UnsupportedError(
            "prompt buckets with a method that remembers from call to call",
            expected="methods that choose anew in every call",
        )
    if checked.plan.outputs == "last":
        raise InputError("outputs = last gives a padded row in a prompt bucket", expected="full")
    taken = {placeholders.value for placeholders in wanted}
    value = next(number for number in range(len(taken) + 1) if number not in taken)
    ids = {placeholders.input for placeholders in wanted}
    filled = (Filled(n, dim, value if n in ids else 0) for n, dim in prompt.inputs.items())
    cropped = []
    for name, output in zip(names, tensor_outputs(final), strict=True):
        for dim, size in enumerate(map(length_of, output.value.shape)):
            if prompt.symbol not in getattr(size, "free_symbols", ()):
                continue
            if prompt.symbol in getattr(sympy.expand(size - prompt.symbol), "free_symbols", ()):
                raise UnsupportedError(f"the output {name!r} has {size} rows: which are padding?")
            cropped.append(Cropped(name, dim))
    return Padding(tuple(buckets), tuple(filled), tuple(cropped))


def pieces_of(
    final: ExportedProgram,
    padding: Padding,
    part: str,
    checked: Checked,
    given: Mapping[str, Tensor],
    wanted: Wanted,
) -> tuple[Piece, ...]:
    """Return the program of each bucket, with a prompt that fits it."""
    symbol, pieces = find_prompt(checked.facts).symbol, []
    for bucket in padding.buckets:
        prompt = fitting(given, padding, bucket, wanted)
        name = bucket_part(part, bucket, padding.buckets)
        program = specialise(final, symbol, bucket)
        pieces.append(Piece(name, program, padding.padded(prompt, bucket), prompt))
    return tuple(pieces)


def judge_padding(
    checked: Checked,
    free: ExportedProgram,
    names: Sequence[str],
    padding: Padding,
    pieces: Sequence[Piece],
) -> Iterator[Verdict]:
    """Yield the verdicts on each bucket's program, in torch, against the free program."""
    for bucket, piece in zip(padding.buckets, pieces, strict=True):
        alone = replace(padding, buckets=(bucket,)).runner(partial(_in_torch, piece, names))
        length = padding.length(piece.prompt)
        who = f"a prompt of {length} rows padded to {bucket}"
        for verdict in against_runner(who, alone, checked, free, piece.prompt, names):
            yield replace(verdict, gate=verdict.gate.replace("target", "padding"))


def _in_torch(piece: Piece, names: Sequence[str], bucket: int) -> Runner:
    return lambda inputs: dict(zip(names, run_program(piece.program, inputs), strict=True))


def fitting(
    given: Mapping[str, Tensor], padding: Padding, bucket: int, wanted: Wanted
) -> dict[str, Tensor]:
    """Return inputs whose prompt fits a bucket and leaves room to pad, cut off on the right.

    What is cut off is text behind the last placeholder.  ``InputError`` where that is too little.
    """
    length = padding.length(given)
    least = length
    for placeholders in wanted:
        places = (given[placeholders.input] == placeholders.value).nonzero()
        least = int(places[:, -1].max()) + 2 if len(places) else 1
    short = min(length, max(bucket - 1, least))
    if short > bucket:
        raise InputError(
            f"the prompt bucket {bucket} cannot be verified: the inputs have prompts of {length} "
            f"rows, of which the first {min(least, length)} are needed",
            expected=f"inputs with a prompt of at most {bucket} rows",
            hint="--inputs FILE.safetensors, or a larger bucket",
        )
    dims = {one.name: one.dim for one in padding.inputs}
    return {n: v.narrow(dims[n], 0, short) if n in dims else v for n, v in given.items()}


def _check_lengths(checked: Checked, prompt: Prompt, buckets: Sequence[int]) -> None:
    span = checked.facts.exported.range_constraints[prompt.symbol]
    count = checked.facts.consumer.count
    least = max(int(span.lower), count + 1 if isinstance(count, int) else 1)
    for bucket in buckets:
        if bucket < least or bucket > span.upper:
            most = f" to {span.upper}" if span.upper.is_Integer else ""
            raise InputError(f"prompt bucket {bucket}", expected=f"from {least}{most} rows")
