"""Evaluator: what an artifact answers to labelled samples, and what the original does.

Both run on the artifact's target: the original is lowered to it as it is, in a temporary folder.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from tokopt.cli.console import track
from tokopt.cli.eval_accuracy import Answers, Run, answers
from tokopt.cli.eval_batch import Batch, batch_size
from tokopt.cli.eval_data import DataFile, find_data
from tokopt.cli.one_program import output_names
from tokopt.cli.verifier import original_of
from tokopt.ir.errors import InputError
from tokopt.ir.program import Program
from tokopt.passes.normalize import normalize
from tokopt.targets.base import Target
from tokopt.targets.calling import on_host
from tokopt.targets.chained import signature_for
from tokopt.targets.program_file import save_program
from tokopt.targets.registry import find
from tokopt.targets.runtime import load
from tokopt.targets.signature import Signature


@dataclass(frozen=True)
class Evaluation:
    """The answers of an artifact, of the original (None where it was not given), and where."""

    artifact: Answers
    original: Answers | None
    target: str


def evaluate(
    folder: str | Path,
    data: str | Path,
    *,
    against: str | Path | None = None,
    budget: float | None = None,
    limit: int | None = None,
    batch: int = 32,
    target: str | None = None,
    quiet: bool = True,
) -> Evaluation:
    """Run an artifact, and with ``against`` the original, on labelled samples.

    ``data`` is laid out as ``eval_data`` says; ``budget`` is one of those the artifact
    was compiled for (the first without it), ``limit`` takes the first samples.  Raises
    ``InputError`` for data that does not fit and where ``against`` is another archive than the
    artifact was made from, ``GateError`` for an artifact that failed verification.
    """
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} samples", expected="at least 1")
    artifact = load(folder, target=target)
    if budget is not None:
        artifact = artifact.at(budget)
    signature = signature_for(artifact.manifest, ())

    def alone(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        artifact.reset()  # a sample is no sequel of the one before
        return artifact(inputs)

    size = batch_size(signature, batch)
    files = find_data(data, signature)
    total = sum(file.count for file in files)
    total = total if limit is None else min(limit, total)
    output = signature.outputs[0].name

    def said(run: Run, who: str) -> Answers:
        batches = read(files, signature, size, total)
        if quiet:
            return answers(run, output, batches)
        with track(who, total) as advance:
            return answers(run, output, batches, lambda done: advance(done, ""))

    name = target or artifact.manifest.target
    if against is None:
        return Evaluation(said(alone, "artifact"), None, name)
    program = original_of(artifact.manifest, against)
    mine = said(alone, "artifact")
    with original_runner(program, find(name)) as run:
        return Evaluation(mine, said(run, "original"), name)


def read(files: list[DataFile], signature: Signature, size: int, total: int) -> Iterator[Batch]:
    """Yield the first ``total`` samples of some files, ``size`` at a time."""
    left = total
    parts = []
    for file in files:
        parts.append(file.batches(signature, size, left))
        left = max(0, left - file.count)
    return chain.from_iterable(parts)


@contextmanager
def original_runner(program: Program, target: Target) -> Iterator[Run]:
    """Lower a program as it is into a temporary folder and yield what runs it there."""
    with torch.no_grad(), TemporaryDirectory(prefix="tokopt-") as folder:
        normal = normalize(program.main)
        stored = save_program(Program({program.main_name: normal}), Path(folder))
        with redirect_stdout(io.StringIO()):
            target.lower(normal, Path(folder), output_names(program.main, 0), stored)
        yield on_host(target.open(Path(folder)))
