"""Coded gate: rows that leave the windows of caches are coded, and decode reads the codes.

``coded``  a step of decode on caches so long that rows of every window are coded: the codes are
           those of the format but for near-ties, and the outputs are those of the step as it was on
           what the format reads of the codes.  Prompts at hand may be too short to code a row of.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from tokopt.cli.cache_gate import Programs
from tokopt.cli.separate_gates import opened_once
from tokopt.cli.stored_cache import StoredCache
from tokopt.ir.decoding import Decoding
from tokopt.ir.part import own_name
from tokopt.ir.tolerances import ORACLE, coarsest
from tokopt.passes.kv.format import State
from tokopt.passes.kv.kept import Kept
from tokopt.passes.validate import Verdict, relative_difference
from tokopt.targets.base import Runner
from tokopt.targets.coding import coded
from tokopt.targets.programs import ProgramEntry
from tokopt.targets.signature import Signature

TIES = 0.01
"""The share of values that may come back as the next code's: rounding differs by runtime."""


def judge_coded(
    cache: StoredCache,
    plain: Programs,
    stored: Programs,
    given: Mapping[str, Tensor],
    who: str,
    opened: Callable[[ProgramEntry], Runner],
) -> Iterator[Verdict]:
    """Yield the verdict on the step and the coders that ``opened`` runs; ``given`` as for all.

    None where no row is ever coded: no format does, or the cache has not room for so many.
    """
    decode, how = stored.entry(cache.decoding.program), cache.decoding
    opened = opened_once(opened)
    formats = [kept.windowed for _, kept in cache.by_cache()]
    later = max((f.waits + f.unit + f.unit // 2 for f in formats if f is not None), default=0)
    pooled = any(f.pooled for f in formats if f is not None)
    least = 2 * later if pooled else later
    if not least or least > _room(decode.signature, how):
        return
    full = _long(how, least, plain.run(given)[decode.name][0])
    taken, wanted_by = dict(full), dict[str, State]()
    for one, kept in cache.by_cache():
        at = full[one.input].shape[one.dim] - later
        given_to, state = _grown(kept, full[one.input], at)
        taken |= {kept.input_of(one.input, name): value for name, value in given_to.items()}
        wanted_by[one.input] = state
    for coder in decode.coders:
        for each in coder.caches:
            if each.salience is not None:
                taken[each.salience] = _salience(taken[each.window])
    taken = {name: value.cpu() for name, value in coded(decode.coders, taken, opened).items()}
    reads, others, values = dict(full), 0, 0
    for one, kept in cache.by_cache():
        wanted = wanted_by[one.input]
        state = {name: taken[kept.input_of(one.input, name)] for name in wanted}
        if any(state[n].shape != v.shape or state[n].dtype != v.dtype for n, v in wanted.items()):
            yield Verdict("coded", False, who, message=f"{one.input}: other rows are coded")
            return
        got, rows = (kept.format.dequantize(kept.side, s, kept.constants) for s in (state, wanted))
        others += int(((got - rows).abs() > ORACLE * rows.abs().amax()).sum())
        values += rows.numel()
        reads[one.input] = got.to(full[one.input].dtype)
    left = plain.runner(plain.entry(decode.name))(reads)
    right = opened(decode)(taken)
    grown = {own_name(c.output, cache.separate.program.graphs[decode.name]) for c in how.caches}
    allowed = max(ORACLE, coarsest(stored.parts[decode.name].exported))
    worst = max(
        relative_difference(value, right[name].cpu())
        for name, value in left.items()
        if name not in grown
    )
    compared = f"{who}: a step on caches with coded rows, with the step as it was on what they hold"
    passed = worst <= allowed and others <= TIES * values
    message = "" if passed else f"off by {worst:.3g}; {others} of {values} values are others"
    yield Verdict("coded", passed, compared, worst, allowed, message)


def _grown(kept: Kept, rows: Tensor, at: int) -> tuple[State, State]:
    """Return what lies between two tokens before rows are coded, and what after.

    Of pools the first ``at`` rows are a prompt's; those behind them wait.
    """
    windowed = kept.windowed
    if windowed is None:
        state = kept.stored(rows)
        return state, state
    if not windowed.pooled:
        return {kept.handed_name: kept.handed(rows)}, kept.stored(rows)
    head, tail = rows[:, :, :at], rows[:, :, at:]
    state = kept.stored(head, _salience(head))
    waiting = torch.cat([state[kept.handed_name], kept.handed(tail)], 2)
    after = windowed.append(kept.side, state, tail, kept.constants, _salience(waiting))
    return {**state, kept.handed_name: waiting}, after


def _salience(rows: Tensor) -> Tensor:
    """Return drawn numbers for rows, the same for as many."""
    drawn = torch.Generator().manual_seed(rows.shape[2])
    return torch.rand(rows.shape[:3], generator=drawn)


def _room(signature: Signature, how: Decoding) -> int:
    """Return how many rows all caches have room for."""
    sizes = {spec.name: spec.shape for spec in signature.inputs}
    known = (signature.ranges.get(str(sizes[one.input][one.dim]), (0, None)) for one in how.caches)
    return min((most for _, most in known if most is not None), default=sys.maxsize)


def _long(how: Decoding, least: int, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a step's inputs with caches of at least so many rows: theirs, again and again."""
    found = dict(given)
    for one in how.caches:
        rows = given[one.input]
        times = -(-least // rows.shape[one.dim])
        found[one.input] = torch.cat([rows] * times, one.dim)
    if how.mask is not None:  # one length for all caches
        prompt, own = given[how.mask][:, :-1], given[how.mask][:, -1:]
        found[how.mask] = torch.cat([*[prompt] * (-(-least // prompt.shape[1])), own], 1)
    return found
