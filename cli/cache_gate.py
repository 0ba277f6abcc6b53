"""Cache gate: programs with a stored cache are the programs as they were, with formats around them.

``cache``  what prefill stores, bit for bit but for near-ties; and a step of decode on it, against
           the step that was, on what the format reads of it.  How many greedy tokens are the same
           with the cache in full is told beside, and is no part of the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tokopt.cli.separate_gates import torch_runner
from tokopt.cli.stored_cache import StoredCache
from tokopt.ir.decoding import Decoding
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.part import Part, own_name
from tokopt.ir.tolerances import ORACLE
from tokopt.passes.validate import Verdict, relative_difference
from tokopt.targets.base import Runner
from tokopt.targets.chained import Chain
from tokopt.targets.generate import generate
from tokopt.targets.manifest import Manifest
from tokopt.targets.programs import ProgramEntry

STEPS = 16
"""Tokens that are made with both caches, to see how many are the same."""

COMPARED = "prefill and a step on the stored cache, with the format around them as they were"

Ran = Mapping[str, tuple[dict[str, Tensor], dict[str, Tensor]]]


@dataclass(frozen=True)
class Programs:
    """Programs by name and how they run."""

    parts: Mapping[str, Part]
    chain: Chain

    def entry(self, name: str) -> ProgramEntry:
        """Return what is said of one program."""
        return next(one for one in self.chain.programs if one.name == name)

    def runner(self, entry: ProgramEntry) -> Runner:
        """Return what runs one program in torch."""
        return torch_runner({entry.name: self.parts[entry.name].exported})(entry)

    def run(self, given: Mapping[str, Tensor]) -> Ran:
        """Return what each program takes and gives, from outer inputs."""
        return self.chain.run(self.runner, given)

    def tokens(self, how: Decoding, front: Mapping[str, Tensor]) -> Tensor:
        """Return greedy tokens, ``[B, STEPS]``."""
        chain = self.chain
        programs, links = tuple(chain.programs), tuple(chain.links)
        manifest = Manifest("torch", chain.signature, programs=programs, links=links, decoding=how)
        prefill, decode = chain.runner(self.runner), self.runner(self.entry(how.program))
        code = self.runner
        return generate(manifest, prefill, decode, front, max_new_tokens=STEPS, stop=(), code=code)


def judge_cache(
    cache: StoredCache,
    plain: Programs,
    stored: Programs,
    given: Mapping[str, Tensor],
    front: Mapping[str, Tensor],
) -> Verdict:
    """Return the verdict on ``stored``; ``given`` are inputs of all, ``front`` a prompt's."""
    before, after = plain.run(given), stored.run(given)
    decode, worst = cache.decoding.program, 0.0
    kept = {one.input: (one, how) for one, how in cache.by_cache()}
    given_to = {name: pair[0] for name, pair in before.items()}
    saliences = cache.saliences(plain.parts, plain.chain.links, given_to)
    arranged = dict(before[decode][0])
    taken, reads = after[decode][0], dict(before[decode][0])
    for link in plain.chain.links:
        if link.target == decode and link.input in kept:
            how, rows = kept[link.input][1], before[link.source][1][link.output]
            got, salience = after[link.source][1][link.output], saliences.get(link.input)
            if salience is None:
                worst = max(worst, relative_difference(how.handed(rows), got))
            else:
                arranged[link.input] = how.format.arrange(rows, salience)
            state = {}
            for name, value in how.stored(rows, salience).items():
                state[name] = taken[how.input_of(link.input, name)]
                if state[name].shape != value.shape:
                    message = f"{link.input}: other rows are coded"
                    return Verdict("cache", False, COMPARED, message=message)
                worst = max(worst, relative_difference(value, state[name]))
            reads[link.input] = how.format.dequantize(how.side, state, how.constants).to(rows.dtype)
    step = plain.runner(plain.entry(decode))
    if saliences:
        minds = _minds_order(cache, step(arranged), before[decode][1])
        if minds > ORACLE:
            message = (
                f"decode reads rows by their places (off by {minds:.3g} in another order): a window"
                " of attention or padding; salient rows cannot be stored apart"
            )
            return Verdict("cache", False, COMPARED, minds, ORACLE, message)
    wanted = step(reads)
    for one, how in kept.values():
        name = own_name(one.output, cache.separate.program.graphs[decode])
        rows, held = wanted[name], taken[one.input]
        new = rows.narrow(one.dim, rows.shape[one.dim] - 1, 1) if one.whole else rows
        now = how.handed(new)
        wanted[name] = torch.cat([held, now], one.dim) if one.whole else now
    for name, value in wanted.items():
        worst = max(worst, relative_difference(value, after[decode][1][name]))
    same = agreement(cache.decoding, plain, stored, front)
    message = "" if worst <= ORACLE else f"the outputs differ by {worst:.3g}"
    return Verdict("cache", worst <= ORACLE, COMPARED + same, worst, ORACLE, message)


def _minds_order(
    cache: StoredCache, arranged: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> float:
    """Return by how much a step on rows in another order is off, its caches aside."""
    graph = cache.separate.program.graphs[cache.decoding.program]
    grown = {own_name(one.output, graph) for one in cache.decoding.caches}
    every = (n for n in wanted if n not in grown)
    return max(relative_difference(wanted[name], arranged[name]) for name in every)


def agreement(how: Decoding, plain: Programs, stored: Programs, front: Mapping[str, Tensor]) -> str:
    """Return how many tokens of each prompt are those of the full cache, up to the first other.

    Empty where these inputs cannot be gone on from so far; items padded behind are left out.
    """
    front = _open_ended(how, plain.chain, front)
    try:
        one, other = plain.tokens(how, front), stored.tokens(how, front)
    except (InputError, UnsupportedError):
        return ""
    same = (one == other).long().cumprod(1).sum()
    return f"; {same} of {one.numel()} greedy tokens as with all bits"


def _open_ended(how: Decoding, chain: Chain, front: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the items whose last row is none of padding, where their dim is the first of all."""
    main = [one.name for one in chain.programs if not one.follows][-1]
    if how.padding is None:
        return front
    last = front[chain.inputs[main, how.padding]][:, -1].bool()
    if bool(last.all()) or not bool(last.any()) or {len(v) for v in front.values()} != {len(last)}:
        return front
    return {name: value[last] for name, value in front.items()}
