"""Budget: what a plan spends, as one number, defined exactly.

    tokens = mean over the consumer's attention layers of
             (visual rows present) / (visual rows of the original)

The consumer is the decoder, or the only stack of a model without one.  A tower that feeds a decoder
is not counted in this number (``tower_rows`` lists it): of its tokens kept, those that arrive in
the decoder (``ir/arrival.py``) are there from layer 0 on.  Exact fractions throughout.

Of a model of text alone rows are words.  A text encoder whose reader is another program counts as
one layer of that reader: the rows it hands on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.lengths import Length
from tokopt.ir.plan import Plan, Stage
from tokopt.ir.sites import Site


def visual_rows(facts: Facts, plan: Plan) -> tuple[int, ...]:
    """Return the visual rows present in each attention layer of the consumer, per batch item.

    Raises ``InputError`` where a stage keeps more rows than there are or breaks a group, and
    ``UnsupportedError`` where a site is unknown or no visual rows of the consumer come from it.
    """
    consumer = facts.consumer
    cuts: list[tuple[int, int]] = []
    for stage, stack, site in _in_data_order(facts, plan):
        _check(stage, stack, site)
        if stage.until is not None:
            if stack is consumer:
                return _between(stage, site, stack, facts)
            continue
        start = site.depth if stack is consumer else 0
        cuts.append((start, rows_arriving(facts, stack, site, stage.keep)))
    return consumer_rows(consumer, cuts)


def consumer_rows(consumer: TokenStack, cuts: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Return the rows in each layer that budgets count, under cuts as in ``rows_after``."""
    if hands_on(consumer):
        return rows_after(row_count(consumer), 1, [(0, left) for _, left in cuts])
    return rows_after(row_count(consumer), len(consumer.stack.layers), cuts)


def hands_on(consumer: TokenStack) -> bool:
    """Return whether what budgets count is read in another program: an encoder of text."""
    return consumer.role.startswith("text") and not consumer.stack.cross


def _between(stage: Stage, site: Site, stack: TokenStack, facts: Facts) -> tuple[int, ...]:
    """Return the rows in each layer of a stack whose one stage's rows come back."""
    assert stage.until is not None
    end, count = facts.find_site(stage.until)[1].depth, row_count(stack)
    depths = range(len(stack.stack.layers))
    return tuple(stage.keep if site.depth <= depth < end else count for depth in depths)


def rows_after(count: int, layers: int, cuts: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Return the rows in each layer when from layer ``start`` on ``left`` stay, for every cut."""
    rows = [count] * layers
    for start, left in cuts:
        for depth in range(start, layers):
            if left > rows[depth]:
                raise InputError(
                    f"{left} visual rows are to stay in layer {depth} where {rows[depth]} are left",
                    where="plan",
                    expected="stages that keep fewer and fewer rows",
                )
            rows[depth] = left
    return tuple(rows)


def spent(facts: Facts, plan: Plan) -> Fraction:
    """Return the budget a plan spends: 1 where it drops nothing."""
    rows = visual_rows(facts, plan)
    return Fraction(sum(rows), len(rows) * row_count(facts.consumer))


def tower_rows(facts: Facts, plan: Plan) -> Mapping[str, tuple[int, ...]]:
    """Return, by role, the tokens in each layer of every tower that feeds the consumer."""
    found: dict[str, tuple[int, ...]] = {}
    for tower in facts.stacks:
        if not tower.role.startswith("vision") or tower is facts.consumer:
            continue
        rows = [row_count(tower)] * len(tower.stack.layers)
        for stage, stack, site in _in_data_order(facts, plan):
            if stack is tower and stage.until is not None:
                rows = list(_between(stage, site, stack, facts))
            elif stack is tower:
                rows[site.depth :] = [stage.keep] * len(rows[site.depth :])
        found[tower.role] = tuple(rows)
    return found


def row_count(stack: TokenStack) -> int:
    """Return the visual rows of a stack per batch item; a run-time count is refused."""
    return _constant(stack.count, stack)


def rows_arriving(facts: Facts, stack: TokenStack, site: Site, keep: int) -> int:
    """Return how many visual rows the consumer has when ``keep`` rows stay at a site of a stack.

    ``keep`` itself in the consumer and in whom it reads across.  A tower's rows count where,
    dropped at ``site``, they would be missing in the consumer; other towers (say, one behind a
    query transformer) are refused.
    """
    consumer = facts.consumer
    if stack is consumer or consumer.tokens.root is stack.tokens.root:
        return keep
    found = facts.arrival(site, consumer)
    if found is None:
        raise UnsupportedError(
            f"dropping rows at {site.name} does not shorten {consumer.role}",
            expected=f"a site in {consumer.role}, or in a tower whose rows are merged into it",
        )
    return found.rows(keep // site.group)


def _in_data_order(facts: Facts, plan: Plan) -> list[tuple[Stage, TokenStack, Site]]:
    """Return the stages with their places, towers before what they are merged into."""
    found = [(stage, *facts.find_site(stage.site)) for stage in plan.stages]
    order = {stack.role: i for i, stack in enumerate(facts.stacks)}
    found.sort(key=lambda f: (f[1].merge is not None, order[f[1].role], f[2].depth))
    for (_, _, before), (_, _, after) in pairwise(found):
        if before == after:
            raise InputError(f"two stages are placed at {after.name}", where="plan")
    return found


def _constant(count: Length, stack: TokenStack) -> int:
    if isinstance(count, int):
        return count
    raise UnsupportedError(
        f"the number of visual tokens in {stack.role} is only known at run time ({count})",
        expected="a constant number of visual tokens",
        hint="export with a fixed image size",
    )


def _check(stage: Stage, stack: TokenStack, site: Site) -> None:
    where = f"plan, stage at {stage.site}"
    if stage.keep > row_count(stack):
        raise InputError(
            f"keep = {stage.keep}", where=where, expected=f"at most {row_count(stack)} tokens"
        )
    if stage.keep % site.group:
        raise InputError(
            f"keep = {stage.keep}", where=where, expected=f"a multiple of {site.group} (one group)"
        )
